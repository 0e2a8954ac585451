//! Databases of earlier programs: each schema there ever was is brought up to date with what is in it, kills included.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use cairn_server::db::{DatabaseAddress, Db};
use sqlx::{
    Connection as _, Executor as _, SqliteConnection, migrate::Migrator,
    sqlite::SqliteConnectOptions,
};

/// The files themselves, whatever the program made of them.
async fn migrations() -> Migrator {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../migrations/sqlite");
    Migrator::new(folder).await.unwrap()
}

/// An image with a version that is ready, as every schema from the second on takes it.
const IMAGE: &str = "INSERT INTO image (id, name, created) VALUES (x'00112233445566778899aabbccddeeff', 'os', 1);
    INSERT INTO version (id, image, number, state, format, size, stored, added, content, content_key, created)
      VALUES (x'ff112233445566778899aabbccddeeff', x'00112233445566778899aabbccddeeff', 1, 'ready', 'raw',
        4096, 100, 100, x'01', x'02', 1);";
const AGENT: &str = "INSERT INTO agent (id, name, state, serial, lend, peer_port, joined)
    VALUES (x'aa112233445566778899aabbccddeeff', 'pc-1', 'approved', x'05', 1000, 8442, 1);";
/// Before segments belonged to sets.
const MANY_SEGMENTS: &str = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 60000)
    INSERT INTO segment (id, image, bytes, class)
      SELECT randomblob(32), x'00112233445566778899aabbccddeeff', 100, 'data' FROM n;
    INSERT INTO assignment (agent, segment) SELECT x'aa112233445566778899aabbccddeeff', id FROM segment;
    INSERT INTO holding SELECT * FROM assignment;";

/// A database as the migration `last` left it.
async fn earlier(path: &Path, last: i64, rows: &[&'static str]) {
    let options = SqliteConnectOptions::new().filename(path).create_if_missing(true);
    let mut connection = SqliteConnection::connect_with(&options).await.unwrap();
    migrations().await.run_direct(Some(last), &mut connection, false).await.unwrap();
    for rows in rows {
        connection.execute(*rows).await.unwrap();
    }
    connection.close().await.unwrap();
}

#[tokio::test]
async fn every_earlier_schema_is_brought_up_to_date_with_what_is_in_it() {
    let folder = tempfile::tempdir().unwrap();
    let latest = migrations().await.iter().map(|migration| migration.version).max().unwrap();
    for last in 1..=latest {
        let path = folder.path().join(format!("{last}.db"));
        let image: &[_] = if last >= 2 { &[IMAGE] } else { &[] };
        let agent: &[_] = if last >= 3 { &[AGENT] } else { &[] };
        earlier(&path, last, &[image, agent].concat()).await;
        // Twice: what is up to date stays as it is.
        for _ in 0..2 {
            let db = Db::open(&DatabaseAddress::Sqlite(path.clone())).await.unwrap();
            let versions = db.versions().await.unwrap();
            assert_eq!(versions.len(), image.len(), "from {last}");
            assert!(versions.iter().all(|version| version.name == "os" && version.size.0 == 4096));
            assert_eq!(db.approved_agents().await.unwrap().len(), agent.len(), "from {last}");
            db.close().await;
        }
    }
}

/// The last migration of the database in `path`, and how many images it has.
async fn look(path: &Path) -> (i64, i64) {
    let options = SqliteConnectOptions::new().filename(path).read_only(true);
    let mut connection = SqliteConnection::connect_with(&options).await.unwrap();
    let last = sqlx::query_scalar("SELECT max(version) FROM _sqlx_migrations");
    let last = last.fetch_one(&mut connection).await.unwrap();
    let images = sqlx::query_scalar("SELECT count(*) FROM image");
    (last, images.fetch_one(&mut connection).await.unwrap())
}

#[tokio::test]
async fn upgrade_keeps_a_copy_of_the_database_before() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cairn.db");
    earlier(&path, 10, &[IMAGE, AGENT]).await;
    let backups = folder.path().join("backups");
    // What a start that was cut short left is no obstacle.
    fs::create_dir(&backups).unwrap();
    fs::write(backups.join("cairn-schema-0010.new"), "half").unwrap();
    let address = DatabaseAddress::Sqlite(path.clone());
    for _ in 0..2 {
        Db::open(&address).await.unwrap().close().await;
        let names: Vec<_> = fs::read_dir(&backups).unwrap().map(|it| it.unwrap().path()).collect();
        let copy = backups.join("cairn-schema-0010.db");
        assert_eq!(names, std::slice::from_ref(&copy), "one copy, of the schema before");
        assert_eq!(look(&copy).await, (10, 1));
        assert_eq!(fs::metadata(&copy).unwrap().permissions().mode() & 0o777, 0o600);
    }
    assert!(look(&path).await.0 > 10);
}

#[tokio::test]
async fn database_of_a_newer_program_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cairn.db");
    let address = DatabaseAddress::Sqlite(path.clone());
    Db::open(&address).await.unwrap().close().await;
    let newer =
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
        VALUES (9999, 'of tomorrow', true, x'00', 0)";
    let options = SqliteConnectOptions::new().filename(&path);
    let mut connection = SqliteConnection::connect_with(&options).await.unwrap();
    connection.execute(newer).await.unwrap();
    connection.close().await.unwrap();
    let before = fs::read(&path).unwrap();
    let mut serve = Command::new(env!("CARGO_BIN_EXE_cairn-server"));
    serve.args(["move", "--from", &format!("sqlite:{}", path.display()), "--database"]);
    serve.arg(format!("sqlite:{}", folder.path().join("new.db").display()));
    let said = serve.arg("--data-dir").arg(folder.path()).output().unwrap();
    let text = String::from_utf8_lossy(&said.stderr);
    assert!(!said.status.success() && text.contains("schema 9999"), "{text}");
    assert!(text.contains("newer cairn-server"), "{text}");
    assert!(fs::read(&path).unwrap() == before);
}

/// Block i holds the number i, every fourth nothing: what was registered with 0.1.
fn registered_with_0_1() -> Vec<u8> {
    let block = |number: u32| match number % 4 {
        3 => vec![0; 4096],
        _ => number.to_le_bytes().repeat(1024),
    };
    (0..256).flat_map(block).collect()
}

/// `cairn-server` with the data folder of a site of 0.1.
struct Upgraded(tempfile::TempDir);

impl Upgraded {
    fn unpack() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let site = include_bytes!("../fixtures/site-0.1.tar.zst").as_slice();
        let site = zstd::Decoder::new(site).unwrap();
        tar::Archive::new(site).unpack(folder.path()).unwrap();
        Self(folder)
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cairn-server"));
        command.args(line.split(' ')).arg("--data-dir").arg(self.0.path());
        command.stdin(Stdio::null());
        command
    }

    fn says(&self, line: &str) -> String {
        let output = self.command(line).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{line}: {error}");
        String::from_utf8(output.stdout).unwrap()
    }
}

/// A server that ends with the test, however that ends.
struct Serving(Child);

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn site_of_0_1_is_served_with_all_that_it_had() {
    let site = Upgraded::unpack();
    let any = "127.0.0.1:0";
    let serve = format!("serve --listen {any} --boot-listen {any} --nbd {any}");
    let mut server = Serving(site.command(&serve).stdout(Stdio::piped()).spawn().unwrap());
    let lines = BufReader::new(server.0.stdout.take().unwrap()).lines();
    let said: Vec<_> = lines.map_while(Result::ok).take(1).collect();
    assert!(said[0].starts_with("ready: https://"), "no first start: {said:?}");
    let copy = site.0.path().join("lab.raw");
    site.says(&format!("image export lab {}", copy.display()));
    assert!(fs::read(&copy).unwrap() == registered_with_0_1());
    let agents: serde_json::Value = serde_json::from_str(&site.says("agent list --json")).unwrap();
    assert_eq!(agents[0]["state"], "approved");
    assert!(site.says("volume list").contains("data") && site.says("group list").contains("room"));
}

#[tokio::test]
async fn a_kill_in_the_middle_of_an_upgrade_costs_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (old, new) = (folder.path().join("old.db"), folder.path().join("new.db"));
    earlier(&old, 10, &[IMAGE, AGENT, MANY_SEGMENTS]).await;
    let address = |path: &PathBuf| format!("sqlite:{}", path.display());
    let move_site = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cairn-server"));
        command.args(["move", "--from", &address(&old), "--database", &address(&new)]);
        command.arg("--data-dir").arg(folder.path().join("data"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        command
    };
    // Sooner or later within the migration, and within the copy.
    let mut kills = 0;
    for milliseconds in [10, 40, 80, 120, 180, 260, 400, 600] {
        let mut moving = move_site().spawn().unwrap();
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
        moving.kill().unwrap();
        let ended = moving.wait().unwrap();
        if ended.success() {
            break;
        }
        kills += 1;
    }
    assert!(kills >= 3, "it was too fast to be killed");
    let done = move_site().output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    // It may have been done before the last kill came.
    assert!(done.status.success() || said.contains("was moved to"), "{said}");
    let db = Db::open(&DatabaseAddress::Sqlite(new)).await.unwrap();
    assert_eq!(db.all_segments().await.unwrap().len(), 60_000);
    let version = db.version_named("os", None).await.unwrap().unwrap();
    assert_eq!(db.assignments_of_set(version.image.into()).await.unwrap().len(), 60_000);
}

//! `cairn-server setup` and the join command that it prints, on a machine in namespaces of its own.

use std::{
    collections::BTreeSet,
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use cairn_core::id::sha256;
use tokio::process::Command;

const SERVER: &str = env!("CARGO_BIN_EXE_cairn-server");

/// The agent, which is built with all tests of the workspace.
fn agent() -> PathBuf {
    let agent = Path::new(SERVER).with_file_name("cairn-agent");
    assert!(agent.is_file(), "build {} with `cargo build --workspace --bins`", agent.display());
    agent
}

/// A line that begins with these words, without them.
fn after<'a>(text: &'a str, words: &str) -> &'a str {
    let found = text.lines().find_map(|line| line.strip_prefix(words));
    found.unwrap_or_else(|| panic!("no line begins with {words:?}: {text}")).trim()
}

fn read(folder: &Path, name: &str) -> String {
    fs::read_to_string(folder.join(name)).unwrap_or_default()
}

/// Runs the script on a machine of its own; what it wrote is in the folder.
async fn run_script(folder: &Path, example: &Path) {
    // The users of the programs look into it.
    fs::set_permissions(folder, Permissions::from_mode(0o755)).unwrap();
    let mut machine = Command::new("unshare");
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("CAIRN_")) {
        machine.env_remove(name);
    }
    machine.args(["--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "sh"]);
    machine.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/api/setup.sh"));
    machine.env("T", folder).env("SERVER", SERVER).env("AGENT", agent()).env("EXAMPLE", example);
    let output = machine.kill_on_drop(true).output().await.unwrap();
    let logs = ["first", "cairn-server.service.journal", "cairn-agent.service.journal"];
    assert!(
        output.status.success(),
        "{}\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr),
        logs.map(|log| format!("{log}: {}", read(folder, log))).join("\n")
    );
}

#[tokio::test]
async fn setup_makes_a_site_that_a_client_joins_as_printed() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let package = b"a package".repeat(10_000);
    fs::write(at.join("agent.deb"), &package).unwrap();
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/server.toml");
    run_script(at, &example).await;
    let read = |name: &str| read(at, name);

    let unknown = read("unknown");
    assert!(
        unknown.contains("no interface eth9")
            && unknown.contains("eth7 (10.99.0.2), eth8 (10.98.0.2)"),
        "{unknown}"
    );
    let first = read("first");
    assert_eq!(after(&first, "dashboard:"), "https://10.99.0.2:8440");
    assert_eq!(after(&first, "ready:"), "https://10.99.0.2:8440");
    let password = after(&first, "sign in:   admin with password ");
    assert_eq!(password.len(), 23);
    assert!(!read("cairn-server.service.journal").contains("password"));
    assert!(read("images").starts_with("no images"));
    let expected = fs::read_to_string(&example).unwrap();
    let expected = expected.replace("#boot_interface = \"eth0\"", "boot_interface = \"eth7\"");
    let expected = expected.replace("#dhcp = \"proxy\"", "dhcp = \"off\"");
    let own = format!("agent_package = \"{}/agent.deb\" # of the test\n", at.display());
    assert_eq!(read("first.toml"), expected + &own);

    for again in ["second", "third"] {
        let said = read(again);
        assert!(said.contains("Nothing was to do") && !said.contains(password), "{said}");
        assert!(said.contains("cairn-server user password admin"), "{said}");
        assert_eq!(after(&said, "ready:"), "https://10.99.0.2:8440");
    }
    assert_eq!(read("before"), read("after"));
    let asked: BTreeSet<_> = read("quiet-calls")
        .lines()
        .map(|line| line.split(' ').next().unwrap().to_owned())
        .collect();
    assert!(
        asked.is_subset(&["cat", "is-active", "is-enabled", "is-failed"].map(str::to_owned).into()),
        "{asked:?}"
    );
    assert_eq!((read("folder").trim(), read("of-others").as_str()), ("700 6789", ""));

    assert_eq!(fs::read(at.join("installed.deb")).unwrap(), package);
    assert!(first.contains(&hex::encode(sha256(&package))));
    let joined = read("joined");
    assert!(joined.contains("cairn-agent.service is started"), "{joined}");
    assert_eq!(read("agent-of-others"), "");
    assert!(read("agents").contains("pending"), "{}", read("agents"));
    assert!(read("limit").contains("50 Mbit/s"), "{}", read("limit"));

    assert!(read("calls").contains("restart cairn-server.service"), "{}", read("calls"));
    assert_eq!(after(&read("fourth"), "ready:"), "https://10.99.0.2:9440");
    assert!(read("token").starts_with("cairn-agent join https://10.99.0.2:9440 "));
    assert!(read("token.full").contains("sha256sum -c && apt-get install"));
    let own = read("own");
    assert!(own.contains("start the server with `cairn-server serve --config own.toml`"), "{own}");
    assert!(
        own.contains("password") && own.contains("join:      cairn-agent join https://127.0.0.1:0"),
        "{own}"
    );
}

//! A private PostgreSQL server of Debian's package, gone with its owner.
//!
//! It refuses to run as root, so it runs as the user that the package made, on a folder of that user's. It does not sync:
//! what tests kill is a process, not a machine.

use std::{
    env, fs,
    net::{IpAddr, Ipv4Addr, TcpListener},
    os::unix::fs::chown,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use crate::{
    netns::Host,
    process::{Process, Program},
    tool,
};

/// The variable that names the server whose databases tests are to use in place of SQLite.
pub const VARIABLE: &str = "CAIRN_TEST_POSTGRES";
const USER: &str = "postgres";
const PASSWORD: &str = "p%40ss";
const PORT: u16 = 5432;
const START: Duration = Duration::from_secs(60);
/// Several servers of a machine are kept apart by their folders, not by the socket's usual place.
const OPTIONS: [&str; 5] = [
    "fsync=off",
    "unix_socket_directories=",
    "max_connections=200",
    "shared_buffers=32MB",
    "jit=off",
];

/// The server.
#[derive(Debug)]
pub struct Postgres {
    process: Process,
    folder: TempDir,
    host: Option<Host>,
    address: IpAddr,
    port: u16,
}

impl Postgres {
    /// Starts one on loopback, on a port that is free.
    ///
    /// # Errors
    /// It is not installed, or does not come up.
    pub fn start() -> Result<Self> {
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("look for a free port")?;
        let port = free.local_addr().context("read the port")?.port();
        drop(free);
        Self::start_at(None, Ipv4Addr::LOCALHOST.into(), port)
    }

    /// Starts one on a machine of the lab.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_on(host: &Host) -> Result<Self> {
        Self::start_at(Some(host.clone()), host.address().into(), PORT)
    }

    fn start_at(host: Option<Host>, address: IpAddr, port: u16) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("cairn-postgres-")
            .tempdir()
            .context("make a folder for PostgreSQL")?;
        let password = folder.path().join("password");
        fs::write(&password, "p@ss\n").context("write its password")?;
        for path in [folder.path(), &password] {
            chown(path, Some(id("-u")?), Some(id("-g")?)).context("give it its folder")?;
        }
        let data = folder.path().join("data");
        let mut init = Command::new("setpriv");
        init.args(as_user()).arg(programs()?.join("initdb")).args([
            "--no-sync",
            "--username",
            USER,
        ]);
        init.args(["--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C.UTF-8"]);
        init.arg("--pwfile").arg(&password).arg("--pgdata").arg(&data).current_dir(folder.path());
        tool::finish(&mut init)?;
        let everybody = "host all all 0.0.0.0/0 scram-sha-256\n";
        fs::write(data.join("pg_hba.conf"), everybody).context("let clients in")?;
        let process = serve(host.as_ref(), &data, address, port)?;
        Ok(Self { process, folder, host, address, port })
    }

    /// Kills it at once, with its sessions.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill().map(drop)
    }

    /// Starts it again after it was killed.
    ///
    /// # Errors
    /// It does not come up.
    pub fn restart(&mut self) -> Result<()> {
        let data = self.folder.path().join("data");
        self.process = serve(self.host.as_ref(), &data, self.address, self.port)?;
        Ok(())
    }

    /// The address of one of its databases.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        format!("postgres://{USER}:{PASSWORD}@{}:{}/{database}", self.address, self.port)
    }

    /// Makes a database.
    ///
    /// # Errors
    /// There is one of this name.
    pub fn create(&self, database: &str) -> Result<String> {
        let namespace = self.host.as_ref().map(Host::namespace);
        create(namespace, &self.url(USER), database)?;
        Ok(self.url(database))
    }

    /// What a database answers: a line for each row.
    ///
    /// # Errors
    /// It refuses the question.
    pub fn query(&self, database: &str, question: &str) -> Result<String> {
        psql(self.host.as_ref().map(Host::namespace), &self.url(database), question)
    }
}

/// A new database of the server that [`VARIABLE`] names, if it names one.
///
/// # Errors
/// It does not answer.
pub fn fresh_database() -> Result<Option<String>> {
    static MADE: AtomicU32 = AtomicU32::new(0);
    let Ok(server) = env::var(VARIABLE) else { return Ok(None) };
    let number = MADE.fetch_add(1, Ordering::Relaxed);
    let name = format!("t{}_{number}", std::process::id());
    create(None, &server, &name)?;
    let (server, _) = server.rsplit_once('/').context("the variable is a URL")?;
    Ok(Some(format!("{server}/{name}")))
}

fn create(namespace: Option<&str>, server: &str, database: &str) -> Result<()> {
    psql(namespace, server, &format!("CREATE DATABASE {database} STRATEGY file_copy")).map(drop)
}

fn psql(namespace: Option<&str>, database: &str, command: &str) -> Result<String> {
    let mut psql = match namespace {
        Some(namespace) => {
            let mut inside = Command::new("ip");
            inside.args(["netns", "exec", namespace, "psql"]);
            inside
        }
        None => Command::new("psql"),
    };
    psql.args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--dbname", database]);
    tool::finish(psql.args(["--command", command]))
}

fn serve(host: Option<&Host>, data: &Path, address: IpAddr, port: u16) -> Result<Process> {
    let mut server = Program::new("postgres", "setpriv").args(as_user());
    // The first one's word that it is to end with us is lost with its user.
    server = server.args(["--pdeathsig", "KILL"]).args([programs()?.join("postgres")]);
    server = server.args(["-D".as_ref(), data.as_os_str()]);
    server = server.args(["-h", &address.to_string(), "-p", &port.to_string()]);
    server = server.args(OPTIONS.iter().flat_map(|option| ["-c", option]));
    if let Some(host) = host {
        server = server.on(host);
    }
    let process = server.start()?;
    process.wait_for_line("ready to accept connections", START)?;
    Ok(process)
}

const fn as_user() -> [&'static str; 5] {
    ["--reuid", USER, "--regid", USER, "--clear-groups"]
}

fn id(what: &str) -> Result<u32> {
    tool::run("id", [what, USER])?.trim().parse().context("read the number of its user")
}

/// Where the programs of the newest version that is installed are.
///
/// # Errors
/// None is installed.
pub fn programs() -> Result<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql")
        .context("look for PostgreSQL (cargo xtask setup installs it)")?;
    let number =
        |path: &PathBuf| path.file_name().and_then(|name| name.to_str()?.parse::<u32>().ok());
    let newest = versions
        .filter_map(|version| Some(version.ok()?.path()))
        .filter(|path| number(path).is_some() && path.join("bin/postgres").is_file())
        .max_by_key(number);
    Ok(newest.context("no version of PostgreSQL's server is installed")?.join("bin"))
}

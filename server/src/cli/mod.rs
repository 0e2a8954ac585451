//! The command line: `serve` here, everything else over HTTPS to a running server.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage. Results go to standard output, progress and errors to standard error.

use std::{
    ffi::OsString,
    fs,
    io::{self, IsTerminal as _, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use cairn_array::settings::{self, Place, Settings};
use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand, error::ErrorKind};
use clap_complete::Shell;

mod agent;
mod backup;
mod boot;
pub mod client;
mod database;
mod deploy;
mod deployment;
mod disk;
mod doctor;
mod group;
mod image;
mod job;
mod limit;
mod machine;
mod output;
mod recover;
mod setup;
mod sparse;
mod status;
mod store;
mod token;
mod user;
mod volume;
mod webhook;

use crate::config::{CONFIG_FILE, ServeOptions};

/// The exit code of a command line or configuration file that is not understood.
const WRONG_USAGE: u8 = 2;

/// Deploys operating systems from the disks of the fleet that runs them.
#[derive(Debug, Parser)]
#[command(name = "cairn-server", version, about)]
struct Cli {
    /// The configuration file, which must be there when it is named [default: /etc/cairn/server.toml]
    #[arg(long, global = true, env = settings::VARIABLE, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server
    Serve(Box<ServeOptions>),
    /// Set this machine up as the server of a site: interface, configuration file, secrets, service
    Setup(setup::Args),
    /// Images: add, list, show, remove, export
    Image(image::Args),
    /// Tokens: create, list, revoke
    Token(token::Args),
    /// Who may sign in to the dashboard, and what each may do
    User(user::Args),
    /// Programs that are told of events
    Webhook(webhook::Args),
    /// Agents: list, approve, revoke, forget
    Agent(agent::Args),
    /// Machines: list, show, approve, refuse, name, forget
    Machine(machine::Args),
    /// Groups of machines: create, list, show, add, remove, image, delete
    Group(group::Args),
    /// Deploy an image to machines
    Deploy(deploy::Args),
    /// Deployments: list, show, cancel
    Deployment(deployment::Args),
    /// Volumes: create, list, show, resize, delete, papers
    Volume(volume::Args),
    /// The store: list, add-device, rebalance, scrub
    Store(store::Args),
    /// What the server does by itself: list
    Job(job::Args),
    /// Limit how fast each machine of the site moves segments, or show the limits
    Limit(limit::Args),
    /// Show the fleet
    Status(status::Args),
    /// Network boot: build the payload, see how far machines come, look who else answers
    Boot(boot::Args),
    /// Look whether this machine and its network are as `serve` needs them, and say what to do; takes the options of `serve`
    Doctor(Box<doctor::Args>),
    /// Write what a shell needs to complete commands, to standard output
    Completions { shell: Shell },
    /// Write the manual pages into a folder
    Man { folder: PathBuf },
    /// Write what the server knows and its clients do not into one file, while it runs; the recovery key alone opens it
    Backup(backup::Args),
    /// Put a site back as a backup has it; where clients are there, `recover` knows newer images
    Restore(crate::backup::restore::Options),
    /// Move the database of a server that is stopped into another, to PostgreSQL or back
    Move(database::Args),
    /// Build a lost server anew from its clients
    Recover(crate::recover::Options),
}

/// Runs what the command line, the environment and the configuration file say.
#[must_use]
pub fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let place = Place::find(
        arguments.iter().skip(1).cloned(),
        std::env::var_os(settings::VARIABLE),
        CONFIG_FILE,
    );
    let settings = Settings::load(&place, &ServeOptions::arguments());
    let command = match &settings {
        Ok(settings) => configured(settings),
        Err(_) => Cli::command(),
    };
    let cli = parse(command, arguments).unwrap_or_else(|error| error.exit());
    match settings {
        Err(error) if cli.command.needs_settings() => {
            complain(&error.into());
            ExitCode::from(WRONG_USAGE)
        }
        _ => match run(cli.command, place) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                complain(&error);
                ExitCode::FAILURE
            }
        },
    }
}

fn complain(error: &anyhow::Error) {
    // Nothing can be done when standard error is gone, too.
    drop(writeln!(io::stderr(), "cairn-server: {error:#}"));
}

impl Command {
    /// Whether it does nothing without a configuration file that can be read. `setup` reads it itself and may make it.
    const fn needs_settings(&self) -> bool {
        !matches!(self, Self::Setup(_) | Self::Completions { .. } | Self::Man { .. })
    }
}

/// The command line with the values of a configuration file as defaults.
fn configured(settings: &Settings) -> clap::Command {
    let of_a_new_server = settings.only(&["store"]);
    let moved_from = settings.renamed("database", "from");
    settings
        .only(&["data_dir"])
        .fill_all(Cli::command())
        .mut_subcommand("serve", |serve| settings.fill(serve))
        .mut_subcommand("doctor", |doctor| settings.fill(doctor))
        .mut_subcommand("restore", |restore| of_a_new_server.fill(restore))
        .mut_subcommand("recover", |recover| of_a_new_server.fill(recover))
        .mut_subcommand("move", |move_| moved_from.fill(move_))
}

fn parse(
    mut command: clap::Command,
    arguments: impl IntoIterator<Item = impl Into<OsString> + Clone>,
) -> Result<Cli, clap::Error> {
    let mut matches = command.try_get_matches_from_mut(arguments)?;
    let cli =
        Cli::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut command))?;
    let serve = match &cli.command {
        Command::Serve(options) => Some(&**options),
        Command::Doctor(args) => Some(args.serve()),
        _ => None,
    };
    match serve.map(ServeOptions::check) {
        Some(Err(why)) => Err(command.error(ErrorKind::MissingRequiredArgument, why)),
        _ => Ok(cli),
    }
}

fn run(command: Command, place: Place) -> anyhow::Result<()> {
    if let Command::Serve(options) = command {
        log_to_stderr();
        return many_threads()?.block_on(crate::serve::serve(*options));
    }
    if let Command::Recover(options) = command {
        log_to_stderr();
        return many_threads()?.block_on(recover::run(options));
    }
    if let Command::Restore(options) = command {
        log_to_stderr();
        return many_threads()?.block_on(backup::restore(options));
    }
    if let Command::Setup(args) = command {
        return many_threads()?.block_on(args.run(place));
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the runtime")?;
    runtime.block_on(async {
        match command {
            Command::Serve(_) => Ok(()),
            Command::Image(args) => args.run().await,
            Command::Token(args) => args.run().await,
            Command::User(args) => args.run().await,
            Command::Webhook(args) => args.run().await,
            Command::Agent(args) => args.run().await,
            Command::Machine(args) => args.run().await,
            Command::Group(args) => args.run().await,
            Command::Deploy(args) => args.run().await,
            Command::Deployment(args) => args.run().await,
            Command::Volume(args) => args.run().await,
            Command::Store(args) => args.run().await,
            Command::Job(args) => args.run().await,
            Command::Limit(args) => args.run().await,
            Command::Status(args) => args.run().await,
            Command::Boot(args) => args.run().await,
            Command::Doctor(args) => args.run().await,
            Command::Completions { shell } => completions(shell),
            Command::Man { folder } => manual(&folder),
            Command::Backup(args) => args.run().await,
            Command::Move(args) => args.run().await,
            Command::Recover(_) | Command::Restore(_) | Command::Setup(_) => Ok(()),
        }
    })
}

fn many_threads() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start the runtime")
}

fn completions(shell: Shell) -> anyhow::Result<()> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "cairn-server", &mut text);
    io::stdout().write_all(&text).context("write to standard output")
}

fn manual(folder: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(folder)
        .and_then(|()| clap_mangen::generate_to(Cli::command(), folder))
        .with_context(|| format!("write manual pages into {}", folder.display()))
}

fn log_to_stderr() {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_env("CAIRN_LOG")
        .unwrap_or_else(|_| EnvFilter::new("info,sqlx=warn,hyper=warn,h2=warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        // Colours only for people: a journal shows them as noise.
        .with_ansi(io::stderr().is_terminal())
        .init();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_manual_page_and_shells_complete_it() {
        let folder = tempfile::tempdir().unwrap();
        manual(&folder.path().join("man")).unwrap();
        let page = fs::read_to_string(folder.path().join("man/cairn-server-volume-create.1"));
        assert!(page.unwrap().contains("layout"));
        let mut text = Vec::new();
        clap_complete::generate(Shell::Bash, &mut Cli::command(), "cairn-server", &mut text);
        assert!(String::from_utf8(text).unwrap().contains("own-disk"));
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_takes_what_it_needs_from_the_file() {
        let text = "data_dir = \"/d\"\ndhcp = \"full\"\ndhcp_pool = \"10.0.0.1-10.0.0.9\"\n\
                    store = [\"/a\", \"/b\"]\ndatabase = \"sqlite:/x.db\"\n";
        let settings = Settings::parse(Path::new("f"), text, &ServeOptions::arguments()).unwrap();
        let show = |line: &str| {
            let cli = parse(configured(&settings), line.split(' ')).unwrap();
            format!("{:?}", cli.command)
        };
        for line in [
            "c serve --dhcp full",
            "c doctor",
            "c image list",
            "c boot build",
            "c boot status",
            "c backup f",
            "c restore f --recovery-key k",
            "c recover --recovery-key k --peer 10.0.0.1",
            "c move --database sqlite:y.db",
        ] {
            assert!(show(line).contains("data_dir: \"/d\""), "{line}: {}", show(line));
        }
        for line in [
            "c serve",
            "c restore f --recovery-key k",
            "c recover --recovery-key k --peer 10.0.0.1",
        ] {
            assert!(show(line).contains(r#"[Folder("/a"), Folder("/b")]"#), "{}", show(line));
        }
        assert!(show("c move --database sqlite:y.db").contains(r#"from: Some(Sqlite("/x.db"))"#));
        let without =
            Settings::parse(Path::new("f"), "dhcp = \"full\"", &ServeOptions::arguments());
        let refused = parse(configured(&without.unwrap()), ["c", "serve"]).unwrap_err();
        assert!(refused.to_string().contains("--dhcp-pool A-B"), "{refused}");
    }

    #[test]
    fn the_flags_that_scripts_rely_on_are_there() {
        let serve = ["cairn-server", "serve", "--data-dir", "d", "--listen", "127.0.0.1:1"];
        let more = ["--boot-listen", "127.0.0.1:2", "--boot-interface", "eth0", "--dhcp", "proxy"];
        let most = ["--store", "a", "--store", "b", "--database", "sqlite:x", "--ipxe-dir", "i"];
        let nbd = ["--nbd", "127.0.0.1:3"];
        let all = serve.iter().chain(&more).chain(&most).chain(&nbd);
        let Command::Serve(options) = parse(Cli::command(), all).unwrap().command else {
            panic!("serve is serve");
        };
        assert_eq!(options.store.len(), 2);
        let full = ["cairn-server", "serve", "--dhcp", "full"];
        assert!(parse(Cli::command(), full).is_err(), "full DHCP needs a pool");
        let refused = Cli::try_parse_from(["cairn-server", "serve", "--database", "mysql://x/y"]);
        assert!(refused.unwrap_err().to_string().contains("postgres://USER@HOST/NAME"));
        for line in [
            "image add f.img --name n",
            "image list --json",
            "image show n",
            "image remove n@2",
            "image export n f.img",
            "token create --json",
            "agent list --json --server https://a:1 --token-file t",
            "machine list --json",
            "machine approve Q9W1-DFWF",
            "deploy n --machine m --disk serial:x --wait --preapprove",
            "volume create v --size 10GiB",
            "volume list --json",
            "status --json --data-dir d",
            "move --data-dir d --database postgres://cairn@db/site",
            "doctor --data-dir d --boot-interface eth0 --json",
            "setup --interface eth0 --dhcp full --dhcp-pool 10.0.0.1-10.0.0.9 --config c",
            "image list --config c",
        ] {
            let words = ["cairn-server"].into_iter().chain(line.split(' '));
            Cli::try_parse_from(words).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
    }
}

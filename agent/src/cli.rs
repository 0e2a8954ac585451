//! The command line of `cairn-agent`.

use std::{
    ffi::OsString,
    io::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use cairn_array::{
    pace::Limit,
    settings::{self, Place, Settings},
    tls::Token,
    wire::DiskSelector,
};
use clap::{
    Arg, Args as _, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, error::ErrorKind,
    parser::ValueSource,
};
use clap_complete::Shell;

use crate::{dark::Opener, lending::Amount, place::ServerPlace};

/// The client of a Cairn site.
#[derive(Debug, Parser)]
#[command(name = "cairn-agent", version)]
pub struct Cli {
    /// Where the agent keeps its papers and the storage file.
    #[arg(
        long,
        global = true,
        env = "CAIRN_STATE_DIR",
        value_name = "DIR",
        default_value = "/var/lib/cairn-agent"
    )]
    pub state_dir: PathBuf,
    /// The configuration file, which must be there when it is named [default: /etc/cairn/agent.toml]
    #[arg(long, global = true, env = settings::VARIABLE, value_name = "FILE")]
    pub config: Option<PathBuf>,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Become a client of the site at URL.
    Join(Join),
    /// Hold and serve segments until stopped.
    Run,
    /// Lend more or less from now on; a running agent follows within a second.
    Lend {
        /// A size like 20GiB or a share of the disk like 15%
        #[arg(value_name = "SIZE")]
        lend: Amount,
        #[command(flatten)]
        limits: Limits,
    },
    /// Limit how fast this machine moves segments, or show its limits; a running agent follows within a second.
    Limit {
        /// Of what it sends: a rate like 50Mbit/s or 10MB/s, or `none`
        #[arg(long, value_name = "RATE")]
        upload: Option<Limit>,
        /// Of what it receives
        #[arg(long, value_name = "RATE")]
        download: Option<Limit>,
    },
    /// Show how the running agent is and what it uses.
    Status {
        #[arg(long)]
        json: bool,
    },
    /// End the membership and free the lent space.
    Leave {
        /// Also when the server cannot be told.
        #[arg(long)]
        force: bool,
    },
    /// List what can be installed.
    Images {
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        alone: Alone,
    },
    /// Read images.
    #[command(subcommand)]
    Image(Image),
    /// Read volumes from the clients that hold them, without the server.
    #[command(subcommand)]
    Volume(Volume),
    /// Install an image to a disk or file; the site's administrator approves it.
    Install {
        /// The image's name
        name: String,
        /// A disk like /dev/sdb, or a file
        #[arg(long, value_name = "DEV-or-FILE")]
        disk: PathBuf,
        /// Ask this server, or whoever stands in for it, instead of the one that this client joined
        #[arg(long, value_name = "URL", conflicts_with = "Alone")]
        server: Option<ServerPlace>,
        #[command(flatten)]
        alone: Alone,
    },
    /// Act for a server that is gone: boot and install machines from the clients alone.
    StandIn(StandIn),
    /// Be the first process of the boot payload.
    #[command(hide = true)]
    Init,
    /// One try of the boot payload to install its machine.
    #[command(hide = true, name = "init-worker")]
    InitWorker,
    /// Keeps the disk of a machine that came up from a volume.
    #[command(hide = true, name = "init-keeper")]
    InitKeeper,
    /// Write what a shell needs to complete commands, to standard output.
    Completions { shell: Shell },
    /// Write the manual pages into a folder.
    Man { folder: PathBuf },
}

#[derive(Debug, clap::Args)]
#[command(allow_missing_positional = true)]
pub struct Join {
    /// The server, like `https://cairn.example:8440`; not needed where --server says it
    pub url: Option<ServerPlace>,
    /// A join token from `cairn-server token create`
    pub token: Token,
    /// The server, for when URL is left out
    #[arg(long, env = "CAIRN_SERVER", value_name = "URL")]
    pub server: Option<ServerPlace>,
    /// How much disk space to lend: a size like 20GiB or a share of the disk like 15%
    #[arg(long, env = "CAIRN_LEND", value_name = "SIZE")]
    pub lend: Amount,
    #[command(flatten)]
    pub limits: Limits,
    /// Where to listen for peers
    #[arg(
        long,
        env = "CAIRN_PEER_LISTEN",
        value_name = "ADDR:PORT",
        default_value = "0.0.0.0:8442"
    )]
    pub peer_listen: SocketAddr,
}

/// The configuration file that is read when none is named.
pub const CONFIG_FILE: &str = "/etc/cairn/agent.toml";

/// The keys of the configuration file: the flags of `join`, and the state folder.
#[must_use]
pub fn options() -> Vec<Arg> {
    let cli = Cli::augment_args(clap::Command::new("cairn-agent"));
    let join = Join::augment_args(clap::Command::new("join"));
    let state_dir = cli.get_arguments().filter(|option| option.get_id() == "state_dir");
    let join = join.get_arguments().filter(|option| option.get_long().is_some());
    state_dir.chain(join).cloned().collect()
}

/// The command line with the values of a configuration file as defaults.
#[must_use]
pub fn configured(settings: &Settings) -> clap::Command {
    let limits = settings.only(&["reserve", "daily_writes"]);
    settings
        .only(&["state_dir"])
        .fill(Cli::command())
        .mut_subcommand("join", |join| settings.fill(join))
        .mut_subcommand("lend", |lend| limits.fill(lend))
}

/// Parsed command line, with what its configuration file adds.
#[derive(Debug)]
pub struct Invocation {
    pub cli: Cli,
    /// The state folder is the one that the package's service uses: nobody named another for this run.
    pub is_of_service: bool,
}

/// Reads a command line; `place` is where its configuration was.
///
/// # Errors
/// When it is not understood, or help was asked for.
pub fn parse(
    mut command: clap::Command,
    arguments: impl IntoIterator<Item = impl Into<OsString> + Clone>,
    place: &Place,
) -> Result<Invocation, clap::Error> {
    let mut matches = command.try_get_matches_from_mut(arguments)?;
    let is_default = matches.value_source("state_dir") == Some(ValueSource::DefaultValue);
    let cli =
        Cli::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut command))?;
    if let Command::Join(Join { url: None, server: None, .. }) = &cli.command {
        let why = "where is the server? Say `cairn-agent join URL TOKEN`";
        return Err(command.error(ErrorKind::MissingRequiredArgument, why));
    }
    Ok(Invocation { cli, is_of_service: is_default && !place.named })
}

/// Writes what `shell` needs to complete commands to standard output.
///
/// # Errors
/// When it is closed.
pub fn completions(shell: Shell) -> std::io::Result<()> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "cairn-agent", &mut text);
    std::io::stdout().write_all(&text)
}

/// Writes the manual pages into a folder.
///
/// # Errors
/// When it cannot be written to.
pub fn manual(folder: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    clap_mangen::generate_to(Cli::command(), folder)
}

/// What the owner of the disk keeps for himself. What is not named is as when nothing was ever said.
#[derive(Debug, clap::Args)]
pub struct Limits {
    /// What stays free on the disk, like 50GiB or 20% [default: a tenth of it, at least 10GiB]
    #[arg(long, env = "CAIRN_RESERVE", value_name = "SIZE")]
    pub reserve: Option<Amount>,
    /// The most that is written on one day [default: 5% of the disk, at least 8GiB; a hard disk has no limit]
    #[arg(long, env = "CAIRN_DAILY_WRITES", value_name = "SIZE")]
    pub daily_writes: Option<Amount>,
}

#[derive(Debug, Subcommand)]
pub enum Image {
    /// Write an image to a new file, from the other clients.
    Export {
        /// The image: NAME (its newest version) or NAME@N
        name: String,
        /// A file that is not there yet
        file: PathBuf,
        #[command(flatten)]
        alone: Alone,
    },
}

#[derive(Debug, Subcommand)]
pub enum Volume {
    /// List the volumes that clients hold.
    List {
        /// Opens what the clients hold
        #[arg(long, value_name = "FILE")]
        recovery_key: PathBuf,
        #[arg(long)]
        json: bool,
    },
    /// Write a volume, as of its last checkpoint, to a new file.
    Read {
        name: String,
        /// A file that is not there yet
        file: PathBuf,
        /// Opens what the clients hold
        #[arg(long, value_name = "FILE")]
        recovery_key: PathBuf,
    },
    /// Serve a volume, as of its last checkpoint, read-only by NBD on this machine, until stopped.
    Serve {
        name: String,
        /// Where to serve it: an address of this machine alone
        #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:10809")]
        listen: SocketAddr,
        /// Opens what the clients hold
        #[arg(long, value_name = "FILE")]
        recovery_key: PathBuf,
    },
}

/// How to do without the server: without any of these it is asked, and its administrator approves an install or export.
#[derive(Debug, clap::Args)]
#[group(multiple = false)]
pub struct Alone {
    /// From the other clients instead of the server: the site's recovery key opens what they hold
    #[arg(long, value_name = "FILE")]
    pub recovery_key: Option<PathBuf>,
    /// From the other clients instead of the server: a grant for this client (`cairn-server agent grant`) opens what it names
    #[arg(long, value_name = "FILE")]
    pub grant: Option<PathBuf>,
}

impl Alone {
    /// What opens what the clients hold; none when the server is asked.
    #[must_use]
    pub fn opener(self) -> Option<Opener> {
        let grant = self.grant.map(Opener::Grant);
        self.recovery_key.map(Opener::RecoveryKey).or(grant)
    }
}

#[derive(Debug, clap::Args)]
pub struct StandIn {
    /// The site's recovery key, as the server's first start wrote it
    #[arg(long, value_name = "FILE", required_unless_present = "approve")]
    pub recovery_key: Option<PathBuf>,
    /// Approve the machine that shows CODE, with the stand-in that runs on this machine
    #[arg(long, value_name = "CODE", conflicts_with = "recovery_key")]
    pub approve: Option<String>,
    /// Answer machines that boot from the network on this interface
    #[arg(long, value_name = "IF")]
    pub interface: Option<String>,
    /// Where to serve machines that install (HTTPS)
    #[arg(long, value_name = "ADDR:PORT", default_value = "0.0.0.0:8440")]
    pub listen: SocketAddr,
    /// Where to serve boot files (HTTP)
    #[arg(long, value_name = "ADDR:PORT", default_value = "0.0.0.0:8441")]
    pub boot_listen: SocketAddr,
    /// Whether to answer DHCP, beside the site's DHCP server
    #[arg(long, value_name = "MODE", default_value = "proxy", value_parser = ["proxy", "off"])]
    pub dhcp: String,
    /// The image to install: NAME (its newest version) or NAME@N; needed when there are several
    #[arg(long, value_name = "IMAGE")]
    pub image: Option<String>,
    /// The disk to install to: serial:… or wwn:… (default: the only one)
    #[arg(long, value_name = "DISK", value_parser = disk)]
    pub disk: Option<DiskSelector>,
    /// Also while the server answers
    #[arg(long)]
    pub force: bool,
}

/// `serial:…` or `wwn:…`
fn disk(text: &str) -> Result<DiskSelector, String> {
    match text.split_once(':') {
        Some(("serial", value)) if !value.is_empty() => Ok(DiskSelector::Serial(value.to_owned())),
        Some(("wwn", value)) if !value.is_empty() => Ok(DiskSelector::Wwn(value.to_owned())),
        _ => Err("name the disk as serial:… or wwn:…".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use cairn_core::units::ByteCount;
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_documented_defaults_hold() {
        let token = format!("cairn_join_{}_{}", "A".repeat(43), "0".repeat(64));
        let line = ["cairn-agent", "join", "https://s:8440", &token, "--lend", "20GiB"];
        let cli = Cli::try_parse_from(line).unwrap();
        assert_eq!(cli.state_dir, PathBuf::from("/var/lib/cairn-agent"));
        let Command::Join(join) = cli.command else { panic!("join") };
        assert_eq!(join.lend, Amount::Bytes(ByteCount(20 << 30)));
        assert_eq!(join.peer_listen, "0.0.0.0:8442".parse().unwrap());
        assert!(
            Cli::try_parse_from(["cairn-agent", "join", "https://s", "token", "--lend", "1G"])
                .is_err()
        );
    }

    fn read(text: &str, line: &str) -> Result<Invocation, clap::Error> {
        let settings = Settings::parse(Path::new("f"), text, &options()).unwrap();
        let place = Place { path: CONFIG_FILE.into(), named: false };
        parse(configured(&settings), line.split(' '), &place)
    }

    #[test]
    fn a_file_has_what_join_needs() {
        let token = format!("cairn_join_{}_{}", "A".repeat(43), "0".repeat(64));
        let text =
            "state_dir = \"/s\"\nserver = \"https://a:1\"\nlend = \"15%\"\nreserve = \"1GiB\"\n";
        let invocation = read(text, &format!("c join {token}")).unwrap();
        assert_eq!(invocation.cli.state_dir, PathBuf::from("/s"));
        assert!(invocation.is_of_service);
        let Command::Join(join) = invocation.cli.command else { panic!("join") };
        assert_eq!((join.url, join.server), (None, Some("https://a:1".parse().unwrap())));
        assert_eq!(
            (join.lend, join.limits.reserve),
            ("15%".parse().unwrap(), Some("1GiB".parse().unwrap()))
        );
        let line = format!("c --state-dir /t join https://b:2 {token} --lend 1GiB");
        let invocation = read(text, &line).unwrap();
        assert!(!invocation.is_of_service);
        let Command::Join(join) = invocation.cli.command else { panic!("join") };
        assert_eq!(
            (join.url, join.lend),
            (Some("https://b:2".parse().unwrap()), "1GiB".parse().unwrap())
        );
        let refused = read("", &format!("c join {token} --lend 1GiB")).unwrap_err().to_string();
        assert!(refused.contains("cairn-agent join URL TOKEN"), "{refused}");
        let Command::Lend { lend, limits } = read(text, "c lend 2GiB").unwrap().cli.command else {
            panic!("lend")
        };
        assert_eq!(
            (lend, limits.reserve),
            ("2GiB".parse().unwrap(), Some("1GiB".parse().unwrap()))
        );
    }

    #[test]
    fn the_example_has_every_key_and_sets_none() {
        let text = include_str!("../../packaging/agent.toml");
        let path = Path::new("packaging/agent.toml");
        let empty = Settings::parse(path, text, &options()).unwrap();
        assert_eq!(empty, Settings::default());
        let all = Settings::parse(path, &settings::with_examples(text), &options()).unwrap();
        let keys: Vec<_> = options().iter().filter_map(settings::key).collect();
        assert_eq!(keys, ["state_dir", "server", "lend", "reserve", "daily_writes", "peer_listen"]);
        for option in options() {
            let key = settings::key(&option).unwrap();
            assert!(all.has(&key), "packaging/agent.toml does not mention {key}");
            let default = option.get_default_values().iter().map(|it| it.to_str().unwrap());
            let default: Vec<_> = default.collect();
            assert!(default.is_empty() || all.values(&key) == default, "{key}");
            let variable = format!("CAIRN_{}", key.to_uppercase());
            assert_eq!(option.get_env().and_then(|name| name.to_str()), Some(variable.as_str()));
        }
    }
}

//! The program `cairn-agent`: reads the command line, calls the library, prints, and ends with 0 (done),
//! 1 (failed) or 2 (wrong usage).

use std::{
    ffi::OsString,
    future::Future,
    io::{IsTerminal as _, Write as _},
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
};

use anyhow::{Context as _, Result};
use cairn_agent::{
    cli::{self, CONFIG_FILE, Cli, Command, Invocation},
    daemon,
    dark::Opener,
    home::Home,
    idle_io, images, init,
    join::{Join, join},
    leave, lend,
    lending::{Amount, Terms},
    limits::{self, RateLimits},
    place::ServerPlace,
    privilege, stand_in,
    target::{
        flow::{Goal, Installer},
        offline,
        terminal::Terminal,
    },
    volume,
};
use cairn_array::{
    settings::{self, Place, Settings},
    systemd::Unit,
    tls::{self, NameTable, Trust},
    wire::MemberState,
};
use clap::CommandFactory as _;
use tracing_subscriber::EnvFilter;

const UNIT: Unit = Unit("cairn-agent.service");
/// The exit code of a command line or configuration file that is not understood.
const WRONG_USAGE: u8 = 2;
/// The daemon's memory is bounded by its threads too: each keeps an arena and buffers of its own.
const DAEMON_THREADS: usize = 2;
const DAEMON_BLOCKING_THREADS: usize = 6;

fn main() -> ExitCode {
    // The kernel starts the payload's first process with words of its own as arguments.
    if init::is_first_process()
        && std::env::args().next().is_some_and(|name| name.ends_with("init"))
    {
        return finish(init::run());
    }
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let place = Place::find(
        arguments.iter().skip(1).cloned(),
        std::env::var_os(settings::VARIABLE),
        CONFIG_FILE,
    );
    let settings = Settings::load(&place, &cli::options());
    let command = match &settings {
        Ok(settings) => cli::configured(settings),
        Err(_) => Cli::command(),
    };
    let invocation = cli::parse(command, arguments, &place).unwrap_or_else(|error| error.exit());
    let needs_settings =
        !matches!(invocation.cli.command, Command::Completions { .. } | Command::Man { .. });
    if let (Err(error), true) = (settings, needs_settings) {
        complain(&error.into());
        return ExitCode::from(WRONG_USAGE);
    }
    let filter = EnvFilter::try_from_env("CAIRN_LOG")
        .unwrap_or_else(|_| EnvFilter::new("warn,cairn_agent=info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    if matches!(invocation.cli.command, Command::InitWorker) {
        return ExitCode::from(u8::try_from(init::work()).unwrap_or(1));
    }
    finish(dispatch(invocation))
}

fn dispatch(Invocation { cli, is_of_service }: Invocation) -> Result<()> {
    let home = Home::new(cli.state_dir);
    match cli.command {
        Command::Join(options) => block_on(become_client(&home, options, is_of_service)),
        Command::Run => run_daemon(home),
        Command::Lend { lend, limits } => {
            block_on(async { say(&lend::lend(&home, terms(lend, &limits)).await?) })
        }
        Command::Limit { upload, download } => {
            block_on(async { say(&limits::limit(&home, upload, download).await?) })
        }
        Command::Status { json } => block_on(async {
            let membership = home.membership()?;
            let status = daemon::ask_status(&home.socket()).await?;
            let status = status.with_context(|| {
                format!(
                    "cairn-agent {} is not running; start it with `cairn-agent run`",
                    membership.agent
                )
            })?;
            if json { print_json(&status) } else { say(&daemon::render_status(&status)) }
        }),
        Command::Leave { force } => block_on(async {
            leave::leave(&home, force).await?;
            say("left the site; the lent space is free\n")
        }),
        Command::Images { json, alone } => block_on(async {
            let found = match alone.opener() {
                None => images::images(&home).await?,
                Some(opener) => images::held(&home, &opener).await?,
            };
            if json { print_json(&found) } else { say(&images::render(&found)) }
        }),
        Command::Image(cli::Image::Export { name, file, alone }) => block_on(async {
            let file = offline::require_new(&file)?;
            read_image(&home, name, file, None, alone.opener()).await
        }),
        Command::Volume(verb) => block_on(volume_verb(&home, verb)),
        Command::Install { name, disk, server, alone } => {
            block_on(read_image(&home, name, disk, server, alone.opener()))
        }
        Command::StandIn(options) => block_on(stand_in(home, options)),
        Command::Init => init::run(),
        Command::InitWorker => Ok(()),
        Command::InitKeeper => init::keep(),
        Command::Completions { shell } => {
            cli::completions(shell).context("write to standard output")
        }
        Command::Man { folder } => {
            cli::manual(&folder).with_context(|| format!("write into {}", folder.display()))
        }
    }
}

const fn terms(lend: Amount, limits: &cli::Limits) -> Terms {
    Terms { lend, reserve: limits.reserve, daily_writes: limits.daily_writes }
}

/// Joins, and starts the package's service where there is one.
async fn become_client(home: &Home, options: cli::Join, is_of_service: bool) -> Result<()> {
    let terms = terms(options.lend, &options.limits);
    let server = options.url.or(options.server).context("say where the server is")?;
    let join_request =
        Join { server, token: options.token, terms, peer_listen: options.peer_listen };
    let reply = join(home, join_request).await?;
    let agent = reply.agent;
    let waits = match reply.state {
        MemberState::Approved => String::new(),
        _ => format!(", waiting for approval (`cairn-server agent approve {agent}`)"),
    };
    say(&format!("joined as agent {agent}{waits}; "))?;
    if !(is_of_service && UNIT.is_installed()) {
        return say("start it with `cairn-agent run`\n");
    }
    // One that was started before it could do anything looks again.
    let started = if UNIT.is_active() { UNIT.restart() } else { UNIT.enable_now() };
    match started {
        Ok(()) => say(&format!("{} is started\n", UNIT.0)),
        Err(error) => {
            say(&format!("{} did not start\n", UNIT.0))?;
            Err(error)
        }
    }
}

fn run_daemon(home: Home) -> Result<()> {
    // Checked first, so that a missing join is not hidden by a change of user.
    home.membership()?;
    privilege::drop_to_system_user(home.folder())?;
    // Inherited by every thread that is started from here on.
    if let Err(error) = idle_io::use_idle_class() {
        tracing::warn!(%error, "the owner's reads and writes do not come first");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(DAEMON_THREADS)
        .max_blocking_threads(DAEMON_BLOCKING_THREADS)
        .enable_all()
        .build()
        .context("start the agent's threads")?;
    runtime.block_on(daemon::run(home))
}

/// From the clients alone when something opens what they hold, else by a server.
async fn read_image(
    home: &Home,
    image: String,
    disk: PathBuf,
    server: Option<ServerPlace>,
    opener: Option<Opener>,
) -> Result<()> {
    match opener {
        Some(opener) => offline::run(home, &opener, &image, &disk, Terminal::new()).await,
        None => install(home, image, disk, server).await,
    }
}

/// The joined state says which server and CA to trust; the install itself is approved like any other machine's,
/// since a member's key alone decrypts nothing.
async fn install(
    home: &Home,
    image: String,
    disk: PathBuf,
    server: Option<ServerPlace>,
) -> Result<()> {
    let server = server.map_or_else(|| home.membership().map(|it| it.server), Ok)?;
    let names = Arc::new(NameTable::default());
    server.announce(&names);
    let installer = Installer {
        trust: Trust::Ca(home.papers()?.ca_pem),
        names,
        key: tls::new_key_and_csr()?,
        goal: Goal::Asked { image, disk },
        server: server.to_string(),
        limits: RateLimits::new(home.rates()?),
    };
    installer.run(Terminal::new()).await.map(drop)
}

async fn volume_verb(home: &Home, verb: cli::Volume) -> Result<()> {
    match verb {
        cli::Volume::List { recovery_key, json } => {
            let volumes = volume::list(home, &recovery_key).await?;
            if json { print_json(&volumes) } else { say(&volume::render(&volumes)) }
        }
        cli::Volume::Read { name, file, recovery_key } => {
            volume::read(home, &recovery_key, &name, &file).await?;
            say(&format!("{name} is in {}\n", file.display()))
        }
        cli::Volume::Serve { name, listen, recovery_key } => {
            let told = |bound| {
                say(&format!("ready: {name} is served read-only at nbd://{bound}/{name}\n"))
            };
            volume::serve(home, &recovery_key, &name, listen, told).await
        }
    }
}

async fn stand_in(home: Home, options: cli::StandIn) -> Result<()> {
    if let Some(code) = options.approve {
        return stand_in::approve(&home, &code).await;
    }
    let recovery_key = options.recovery_key.context("name the recovery key with --recovery-key")?;
    let options = stand_in::Options {
        recovery_key,
        interface: options.interface,
        listen: options.listen,
        boot_listen: options.boot_listen,
        dhcp: options.dhcp == "proxy",
        image: options.image,
        disk: options.disk.unwrap_or_default(),
        force: options.force,
    };
    stand_in::run(home, options).await
}

fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.context("start the program's threads")?.block_on(work)
}

fn print_json<T: serde::Serialize>(value: &T) -> Result<()> {
    let text = serde_json::to_string_pretty(value).context("write JSON")?;
    say(&format!("{text}\n"))
}

fn say(text: &str) -> Result<()> {
    std::io::stdout().write_all(text.as_bytes()).context("write to standard output")
}

fn finish(outcome: Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stderr, reason = "the last word of a failed program")]
fn complain(error: &anyhow::Error) {
    eprintln!("cairn-agent: {error:#}");
}

//! The stand-in's terminal, and the socket by which another command on this machine approves.
//!
//! | on `stand-in.sock` | |
//! |---|---|
//! | a code and a newline | `ok`, or why not, and the end |

use std::{io, os::unix::fs::PermissionsExt as _, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, bail};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
    sync::mpsc,
};
use tokio_util::sync::CancellationToken;

use super::targets::Targets;
use crate::home::Home;

/// The longest line that is read.
const MAX_LINE: u64 = 256;
const PATIENCE: Duration = Duration::from_secs(5);

/// Shows a line.
#[expect(clippy::print_stdout, reason = "this is the program's own screen, not a log")]
pub(super) fn say(line: &str) {
    println!("{line}");
}

/// Text from a machine, without what would act on a terminal.
pub(super) fn plain(text: &str) -> String {
    text.replace(|c: char| c.is_control(), " ")
}

/// Takes codes from the terminal until the stop. A thread of its own reads: nothing can end a read of standard input, and
/// the process does not wait for this one.
pub(super) async fn read(targets: Arc<Targets>, stop: CancellationToken) -> Result<()> {
    let (tell, mut lines) = mpsc::channel(1);
    let reader = std::thread::Builder::new().name("terminal".to_owned());
    reader
        .spawn(move || {
            let lines = io::stdin().lines().map_while(Result::ok);
            lines.take_while(|line| tell.blocking_send(line.clone()).is_ok()).for_each(drop);
        })
        .context("read the terminal")?;
    loop {
        let line = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            line = lines.recv() => line,
        };
        match line {
            Some(line) if line.trim().is_empty() => {}
            Some(line) => {
                if let Err(error) = targets.approve(&line) {
                    say(&plain(&format!("{error:#}")));
                }
            }
            // Without a terminal the socket is left.
            None => {
                stop.cancelled().await;
                return Ok(());
            }
        }
    }
}

/// Takes codes from other commands on this machine until the stop.
pub(super) async fn listen(
    socket: PathBuf,
    targets: Arc<Targets>,
    stop: CancellationToken,
) -> Result<()> {
    let what = || format!("listen on {}", socket.display());
    match std::fs::remove_file(&socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(what);
        }
        _ => {}
    }
    let listener = UnixListener::bind(&socket).with_context(what)?;
    std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o600)).with_context(what)?;
    loop {
        let (stream, _) = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted.with_context(what)?,
        };
        // Whoever asked may have gone.
        if let Ok(Err(error)) = tokio::time::timeout(PATIENCE, answer(stream, &targets)).await {
            tracing::debug!(%error, "take a code");
        }
    }
    std::fs::remove_file(&socket).with_context(|| format!("remove {}", socket.display()))
}

async fn answer(mut stream: UnixStream, targets: &Targets) -> io::Result<()> {
    let (read, mut write) = stream.split();
    let mut code = String::new();
    BufReader::new(read.take(MAX_LINE)).read_line(&mut code).await?;
    let text = match targets.approve(&code) {
        Ok(()) => "ok".to_owned(),
        Err(error) => plain(&format!("{error:#}")),
    };
    write.write_all(text.as_bytes()).await
}

/// Approves a code with the stand-in that runs on this machine.
///
/// # Errors
/// When none runs, or no machine there shows the code.
pub async fn approve(home: &Home, code: &str) -> Result<()> {
    let socket = home.stand_in_socket();
    let mut stream = UnixStream::connect(&socket).await.with_context(|| {
        format!(
            "reach the stand-in at {}: start it here with `cairn-agent stand-in --recovery-key FILE`",
            socket.display()
        )
    })?;
    let ask = async {
        stream.write_all(format!("{code}\n").as_bytes()).await?;
        let mut said = String::new();
        (&mut stream).take(4096).read_to_string(&mut said).await?;
        io::Result::Ok(said)
    };
    let said = tokio::time::timeout(PATIENCE, ask).await.context("wait for the stand-in")?;
    match said.context("ask the stand-in")?.as_str() {
        "ok" => Ok(()),
        "" => bail!("the stand-in ended"),
        refusal => bail!("{refusal}"),
    }
}

//! The configuration file, as the program uses it.

use std::{path::Path, process::Stdio};

use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_cairn-server");

/// The program without what the environment of the tests says of Cairn, in a folder without a site.
fn program(line: &[&str]) -> Command {
    let mut command = Command::new(PROGRAM);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("CAIRN_")) {
        command.env_remove(name);
    }
    command.args(line).current_dir("/").stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// Exit code, standard output and standard error.
async fn outcome(line: &[&str]) -> (Option<i32>, String, String) {
    let output = program(line).output().await.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// Starts a server; the host that it is reached at.
async fn serve(mut command: Command) -> (Child, String) {
    let mut serving = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(serving.stdout.take().unwrap()).lines();
    while let Some(line) = lines.next_line().await.unwrap() {
        if let Some(url) = line.strip_prefix("ready: https://") {
            let (host, _) = url.rsplit_once(':').unwrap();
            return (serving, host.to_owned());
        }
    }
    panic!("the server ended: {:?}", serving.wait().await);
}

async fn stop(mut serving: Child) {
    let pid = rustix::process::Pid::from_raw(serving.id().unwrap().try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(serving.wait().await.unwrap().code(), Some(0));
}

fn write(folder: &Path, text: &str) -> String {
    let file = folder.join("server.toml");
    std::fs::write(&file, text).unwrap();
    file.to_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_flag_wins_over_the_variable_and_the_variable_over_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let text = format!(
        "data_dir = \"{}/data\"\nlisten = \"127.0.0.2:0\"\nboot_listen = \"127.0.0.1:0\"\nnbd = \"127.0.0.1:0\"\n",
        folder.path().display()
    );
    let file = write(folder.path(), &text);
    let line = ["serve", "--config", &file];
    let (serving, host) = serve(program(&line)).await;
    assert_eq!(host, "127.0.0.2");
    let (code, said, why) = outcome(&["image", "list", "--config", &file]).await;
    assert!(code == Some(0) && said.starts_with("no images"), "{said}{why}");
    stop(serving).await;
    let mut command = program(&line);
    command.env("CAIRN_LISTEN", "127.0.0.3:0");
    let (serving, host) = serve(command).await;
    assert_eq!(host, "127.0.0.3");
    stop(serving).await;
    let mut command = program(&["serve", "--listen", "127.0.0.4:0"]);
    command.env("CAIRN_LISTEN", "127.0.0.3:0").env("CAIRN_CONFIG", &file);
    let (serving, host) = serve(command).await;
    assert_eq!(host, "127.0.0.4");
    stop(serving).await;
}

#[tokio::test]
async fn a_file_with_errors_is_refused_by_name_and_help_is_still_given() {
    let folder = tempfile::tempdir().unwrap();
    for (text, wanted) in [
        ("\ndata_dri = \"/x\"\n", "server.toml, line 2: there is no option \"data_dri\""),
        ("listen = 8440\n", "server.toml, line 1: listen is a text in quotes"),
        ("dhcp = \"maybe\"\n", "dhcp cannot be \"maybe\": it is one of proxy, full, off"),
        ("data_dir = \n", "server.toml, line 1: "),
    ] {
        let file = write(folder.path(), text);
        for line in [&["serve"][..], &["image", "list"], &["doctor"], &["setup"]] {
            let (code, _, said) = outcome(&[line, &["--config", &file]].concat()).await;
            let expected = if line == ["setup"] { 1 } else { 2 };
            assert_eq!(code, Some(expected), "{line:?}: {said}");
            assert!(said.contains(wanted), "{line:?}: {said}");
        }
        let (code, said, _) = outcome(&["serve", "--help", "--config", &file]).await;
        assert!(code == Some(0) && said.contains("--agent-package"), "{said}");
    }
    let (code, _, said) = outcome(&["status", "--config", "/nowhere/server.toml"]).await;
    assert_eq!(code, Some(2));
    assert!(said.contains("read configuration file /nowhere/server.toml"), "{said}");
    let file = write(folder.path(), "dhcp = \"full\"\n");
    let (code, _, said) = outcome(&["serve", "--config", &file]).await;
    assert!(code == Some(2) && said.contains("--dhcp-pool"), "{said}");
}

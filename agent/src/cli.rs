//! The command line of `cairn-agent`.

use std::{net::SocketAddr, path::PathBuf};

use cairn_array::tls::Token;
use cairn_core::units::ByteCount;
use clap::{Parser, Subcommand};

use crate::{place::ServerPlace, size};

/// The client of a Cairn site.
#[derive(Debug, Parser)]
#[command(name = "cairn-agent", version)]
pub struct Cli {
    /// Where the agent keeps its papers and the storage file.
    #[arg(long, global = true, value_name = "DIR", default_value = "/var/lib/cairn-agent")]
    pub state_dir: PathBuf,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Become a client of the site at URL.
    Join {
        /// The server, like `https://cairn.example:8440`
        url: ServerPlace,
        /// A join token from `cairn-server token create`
        token: Token,
        /// How much disk space to lend, like 20GiB
        #[arg(long, value_name = "SIZE", value_parser = size::parse)]
        lend: ByteCount,
        /// Where to listen for peers
        #[arg(long, value_name = "ADDR:PORT", default_value = "0.0.0.0:8442")]
        peer_listen: SocketAddr,
    },
    /// Hold and serve segments until stopped.
    Run,
    /// Show how the running agent is.
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
    },
    /// Install an image to a disk or file; the site's administrator approves it.
    Install {
        /// The image's name
        name: String,
        /// A disk like /dev/sdb, or a file
        #[arg(long, value_name = "DEV-or-FILE")]
        disk: PathBuf,
    },
    /// Be the first process of the boot payload.
    #[command(hide = true)]
    Init,
    /// One try of the boot payload to install its machine.
    #[command(hide = true, name = "init-worker")]
    InitWorker,
}

#[cfg(test)]
mod tests {
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
        let Command::Join { lend, peer_listen, .. } = cli.command else { panic!("join") };
        assert_eq!(lend, ByteCount(20 << 30));
        assert_eq!(peer_listen, "0.0.0.0:8442".parse().unwrap());
        assert!(
            Cli::try_parse_from(["cairn-agent", "join", "https://s", "token", "--lend", "1G"])
                .is_err()
        );
    }
}

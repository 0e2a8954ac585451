//! `cairn-server volume …`

use std::{
    fs::{DirBuilder, OpenOptions},
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use cairn_array::{size, tls::new_key_and_csr};
use cairn_core::units::ByteCount;
use clap::Subcommand;
use reqwest::Method;

use super::{
    client::{Client, Remote, part},
    output::{bytes, json, line, note, or_dash, table},
};
use crate::api::volume::{
    Condition, PapersRequest, ResizeRequest, Volume, VolumePapers, VolumeRequest,
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    remote: Remote,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Create a volume: empty, or as a writable clone of an image
    Create {
        name: String,
        /// Like 10GiB; without it as large as the image
        #[arg(long, value_parser = size::parse, required_unless_present = "image")]
        size: Option<ByteCount>,
        /// Begin as this image (NAME or NAME@N), of which nothing is copied
        #[arg(long, value_name = "IMAGE")]
        image: Option<String>,
        #[arg(long)]
        json: bool,
    },
    /// List volumes
    List {
        #[arg(long)]
        json: bool,
    },
    /// Show a volume
    Show {
        name: String,
        #[arg(long)]
        json: bool,
    },
    /// Give a volume another size; clients see it when they connect anew
    Resize {
        name: String,
        #[arg(value_parser = size::parse)]
        size: ByteCount,
        /// Cut off what is behind a smaller size
        #[arg(long)]
        shrink: bool,
    },
    /// Delete a volume with all that it holds
    Delete { name: String },
    /// Write papers to use a volume from another machine: ca-cert.pem, client-cert.pem and client-key.pem in a new folder
    Papers { name: String, folder: PathBuf },
}

impl Args {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let client = self.remote.connect()?;
        match self.verb {
            Verb::Create { name, size, image, json: as_json } => {
                let request = VolumeRequest { name, size: size.map(|size| size.0), image };
                let made: Volume = client.post_json("/api/v1/volumes", &request).await?;
                if as_json { json(&made) } else { show(&made) }
            }
            Verb::List { json: as_json } => {
                let volumes: Vec<Volume> = client.get("/api/v1/volumes").await?;
                if as_json { json(&volumes) } else { list(&volumes) }
            }
            Verb::Show { name, json: as_json } => {
                let volume: Volume = client.get(&path(&name)).await?;
                if as_json { json(&volume) } else { show(&volume) }
            }
            Verb::Resize { name, size, shrink } => {
                let request = ResizeRequest { size: size.0, shrink };
                let request = client.request(Method::PATCH, &path(&name)).json(&request);
                let answer = client.send(request).await?;
                show(&answer.json().await.context("read the server's answer")?)
            }
            Verb::Delete { name } => {
                client.delete(&path(&name)).await?;
                note(&format!("{name} is gone"))
            }
            Verb::Papers { name, folder } => papers(&client, &name, &folder).await,
        }
    }
}

fn path(name: &str) -> String {
    format!("/api/v1/volumes/{}", part(name))
}

fn condition(volume: &Volume) -> String {
    let state = match volume.state {
        Condition::Well => "well",
        Condition::StoreFull => "store full",
        Condition::StoreFails => "store fails",
        Condition::Faulty => "faulty",
        Condition::Unavailable => "unavailable",
        Condition::Changing => "changing",
    };
    volume.reason.as_ref().map_or_else(|| state.to_owned(), |why| format!("{state}: {why}"))
}

fn list(volumes: &[Volume]) -> anyhow::Result<()> {
    let rows = volumes.iter().map(|volume| {
        vec![
            volume.name.clone(),
            bytes(volume.size),
            bytes(volume.stored),
            or_dash(volume.origin.clone()),
            volume.connections.to_string(),
            condition(volume),
        ]
    });
    table(
        &["name", "size", "stored", "began as", "connections", "state"],
        rows.collect(),
        "no volumes",
    )
}

fn show(volume: &Volume) -> anyhow::Result<()> {
    line(&format!("name:         {}", volume.name))?;
    line(&format!("size:         {} ({} bytes)", bytes(volume.size), volume.size))?;
    line(&format!("began as:     {}", or_dash(volume.origin.clone())))?;
    line(&format!("created:      {}", volume.created))?;
    line(&format!("state:        {}", condition(volume)))?;
    line(&format!("connections:  {}", volume.connections))?;
    line(&format!("stored:       {} for {}", bytes(volume.stored), bytes(volume.live)))?;
    line(&format!("journal:      {}", bytes(volume.journal)))
}

/// The key stays on this machine: the server sees the request for a certificate only.
async fn papers(client: &Client, name: &str, folder: &Path) -> anyhow::Result<()> {
    let made = new_key_and_csr()?;
    let request = PapersRequest { csr: made.csr_pem };
    let papers: VolumePapers =
        client.post_json(&format!("{}/papers", path(name)), &request).await?;
    DirBuilder::new()
        .mode(0o700)
        .create(folder)
        .with_context(|| format!("make the folder {}", folder.display()))?;
    let files = [
        ("ca-cert.pem", &papers.ca),
        ("client-cert.pem", &papers.certificate),
        ("client-key.pem", &made.key_pem),
    ];
    for (file, text) in files {
        let file = folder.join(file);
        let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&file);
        opened
            .and_then(|mut opened| opened.write_all(text.as_bytes()))
            .with_context(|| format!("write {}", file.display()))?;
    }
    note(&format!(
        "papers for {name} are in {0}; for instance: nbdinfo 'nbds://SERVER/{name}?tls-certificates={0}'",
        folder.display()
    ))
}

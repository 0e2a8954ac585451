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
    disk::Life,
    image,
    output::{bytes, json, line, note, or_dash, table},
};
use crate::api::{
    image::Added,
    snapshot::{RollbackRequest, Snapshot, SnapshotRequest},
    volume::{
        Condition, FlushDurability, PapersRequest, ResizeRequest, Volume, VolumePapers,
        VolumeRequest,
    },
};
use crate::db::volume::VolumeLayout;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    remote: Remote,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Create a volume: empty, or as a writable clone of an image or a snapshot
    Create {
        name: String,
        /// Like 10GiB; without it as large as what it begins as
        #[arg(long, value_parser = size::parse, required_unless_present_any = ["image", "snapshot"])]
        size: Option<ByteCount>,
        /// Begin as this image (NAME or NAME@N), of which nothing is copied
        #[arg(long, value_name = "IMAGE", conflicts_with = "snapshot")]
        image: Option<String>,
        /// Begin as this snapshot, of which nothing is copied
        #[arg(long, value_name = "VOLUME@SNAPSHOT")]
        snapshot: Option<String>,
        /// Who holds a part of it: server, mirror, swarm, client-parity or server-parity
        #[arg(long, default_value = "server", value_parser = layout)]
        layout: VolumeLayout,
        /// When a flush is answered: local, or mirrored once a client has it, too
        #[arg(long, default_value = "local", value_parser = durability)]
        durability: FlushDurability,
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
    /// Take a snapshot of a volume as it is now
    Snapshot {
        volume: String,
        snapshot: String,
        #[arg(long)]
        json: bool,
    },
    /// List the snapshots of a volume
    Snapshots {
        volume: String,
        #[arg(long)]
        json: bool,
    },
    /// Make a volume what a snapshot of it is; nobody may use it meanwhile
    Rollback {
        volume: String,
        snapshot: String,
        /// Throw away what was written since
        #[arg(long)]
        discard: bool,
    },
    /// Delete a snapshot
    DeleteSnapshot { volume: String, snapshot: String },
    /// Make a snapshot the next version of an image
    Image {
        #[arg(value_name = "VOLUME@SNAPSHOT")]
        snapshot: String,
        /// Of the image
        name: String,
        /// Take bytes that look like no disk image at all
        #[arg(long)]
        any_content: bool,
        #[arg(long)]
        json: bool,
    },
    /// Write papers to use a volume from another machine: ca-cert.pem, client-cert.pem and client-key.pem in a new folder
    Papers { name: String, folder: PathBuf },
    /// Make an address at which loaders read a volume, or VOLUME@SNAPSHOT, by plain HTTP (`sanboot URL`)
    Url {
        name: String,
        #[command(flatten)]
        life: Life,
    },
}

impl Args {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let client = self.remote.connect()?;
        match self.verb {
            Verb::Create { name, size, image, snapshot, layout, durability, json: as_json } => {
                let size = size.map(|size| size.0);
                let request = VolumeRequest { name, size, image, snapshot, layout, durability };
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
            Verb::Snapshot { volume, snapshot, json: as_json } => {
                let request = SnapshotRequest { name: snapshot };
                let taken: Snapshot = client.post_json(&snapshots(&volume), &request).await?;
                if as_json {
                    json(&taken)
                } else {
                    note(&format!("{volume}@{} is taken: {}", taken.name, bytes(taken.size)))
                }
            }
            Verb::Snapshots { volume, json: as_json } => {
                let taken: Vec<Snapshot> = client.get(&snapshots(&volume)).await?;
                if as_json { json(&taken) } else { list_snapshots(&taken) }
            }
            Verb::Rollback { volume, snapshot, discard } => {
                let request = RollbackRequest { snapshot, discard };
                let path = format!("{}/rollback", path(&volume));
                show(&client.post_json(&path, &request).await?)
            }
            Verb::DeleteSnapshot { volume, snapshot } => {
                client.delete(&format!("{}/{}", snapshots(&volume), part(&snapshot))).await?;
                note(&format!("{volume}@{snapshot} is gone"))
            }
            Verb::Image { snapshot, name, any_content, json: as_json } => {
                let added = to_image(&client, &snapshot, &name, any_content).await?;
                if as_json { json(&added) } else { image::show_added(&added) }
            }
            Verb::Papers { name, folder } => papers(&client, &name, &folder).await,
            Verb::Url { name, life } => life.url(&client, &path(&name)).await,
        }
    }
}

fn layout(word: &str) -> Result<VolumeLayout, &'static str> {
    word.parse().map_err(|_| "say server, mirror, swarm, client-parity or server-parity")
}

fn durability(word: &str) -> Result<FlushDurability, &'static str> {
    word.parse().map_err(|_| "say local or mirrored")
}

fn path(name: &str) -> String {
    format!("/api/v1/volumes/{}", part(name))
}

fn snapshots(volume: &str) -> String {
    format!("{}/snapshots", path(volume))
}

async fn to_image(
    client: &Client,
    snapshot: &str,
    name: &str,
    any_content: bool,
) -> anyhow::Result<Added> {
    let (image, from) = (part(name), part(snapshot));
    let path = format!("/api/v1/images/{image}/versions?snapshot={from}&any_content={any_content}");
    image::register(client, client.request(Method::POST, &path), name, None).await
}

fn list_snapshots(taken: &[Snapshot]) -> anyhow::Result<()> {
    let rows = taken.iter().map(|snapshot| {
        vec![
            snapshot.name.clone(),
            bytes(snapshot.size),
            snapshot.created.clone(),
            or_dash((!snapshot.clones.is_empty()).then(|| snapshot.clones.join(", "))),
        ]
    });
    table(&["name", "size", "taken", "clones"], rows.collect(), "no snapshots")
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

fn tail_holders(volume: &Volume) -> String {
    match volume.tail_holders {
        None => String::new(),
        Some(0) => ": no client has the journal, flushes wait for one".to_owned(),
        Some(1) => ": 1 client has the journal".to_owned(),
        Some(count) => format!(": {count} clients have the journal"),
    }
}

fn list(volumes: &[Volume]) -> anyhow::Result<()> {
    let rows = volumes.iter().map(|volume| {
        vec![
            volume.name.clone(),
            bytes(volume.size),
            bytes(volume.stored),
            volume.layout.word().to_owned(),
            or_dash(volume.origin.clone()),
            volume.connections.to_string(),
            condition(volume),
        ]
    });
    table(
        &["name", "size", "stored", "layout", "began as", "connections", "state"],
        rows.collect(),
        "no volumes",
    )
}

fn show(volume: &Volume) -> anyhow::Result<()> {
    line(&format!("name:         {}", volume.name))?;
    line(&format!("size:         {} ({} bytes)", bytes(volume.size), volume.size))?;
    line(&format!("began as:     {}", or_dash(volume.origin.clone())))?;
    line(&format!("layout:       {}", volume.layout))?;
    if let Some(durability) = volume.durability {
        line(&format!("durability:   {durability}{}", tail_holders(volume)))?;
    }
    if let Some(redundancy) = &volume.redundancy {
        line(&format!("redundancy:   {redundancy}"))?;
    }
    if let Some(scatter) = volume.scatter {
        line(&format!(
            "on clients:   {} of {} segments ({} of {}){}",
            scatter.held,
            scatter.wanted,
            bytes(scatter.held_bytes),
            bytes(scatter.wanted_bytes),
            if scatter.complete { "" } else { ", behind the last checkpoint" }
        ))?;
    }
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

//! On which server's disk a volume's journal is: where the volume was used last.
//!
//! With a database and a store that outlive a server, another one takes its place. Invariant: a volume is opened here only
//! with the journal of the server that used it last, be it its file or all that clients have of it.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::Path,
};

use anyhow::{Context as _, bail, ensure};
use cairn_array::{
    peer::{PeerClient, tails},
    random,
    volume::TailRing,
};
use cairn_core::{
    id::{AgentId, VolumeId},
    seal::SealKey,
    units::Generation,
    volume::Durability,
};
use rustix::fs::FallocateFlags;

use super::{create::make_journal, journal_file};
use crate::{app::App, db::volume::VolumeRow};

const ID_BYTES: usize = 16;
const ID_FILE: &str = "server-id";

/// Tells servers of one site apart, by their data folders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerId(pub [u8; ID_BYTES]);

impl ServerId {
    /// That of this data folder, which gets one when it has none.
    ///
    /// # Errors
    /// When it cannot be read or written.
    pub fn of(data_dir: &Path) -> anyhow::Result<Self> {
        let path = data_dir.join(ID_FILE);
        let what = || format!("read {}", path.display());
        match fs::read(&path) {
            Ok(bytes) => Ok(Self(bytes.try_into().ok().with_context(what)?)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let id: [u8; ID_BYTES] = random::array()?;
                let new = path.with_extension("new");
                let mut file = OpenOptions::new();
                let mut file =
                    file.write(true).create(true).truncate(true).mode(0o600).open(&new)?;
                file.write_all(&id)?;
                file.sync_all()?;
                fs::rename(&new, &path)?;
                File::open(data_dir)?.sync_all()?;
                Ok(Self(id))
            }
            Err(error) => Err(error).with_context(what),
        }
    }
}

/// Brings a volume's journal here, if it is not: from clients, when they mirror it.
pub(super) async fn bring(app: &App, row: &VolumeRow, content_key: &SealKey) -> anyhow::Result<()> {
    let home = app.db.journal_home(row.id).await.context("look where its journal is")?;
    if home == Some(app.server_id) || home.is_none() && !journal_file(app, row.id).exists() {
        return Ok(());
    }
    if home.is_some() {
        let known =
            app.db.known_root(row.id).await.context("look for the root that clients know")?;
        ensure!(
            known.is_some(),
            "its journal is on the server that used it last, and no client mirrors it: start that one"
        );
        take_over(app, row, content_key).await?;
    }
    app.db.keep_journal_home(row.id, app.server_id).await.context("note where its journal is")
}

/// Puts the journal together from all clients that may have its end.
async fn take_over(app: &App, row: &VolumeRow, content_key: &SealKey) -> anyhow::Result<()> {
    let file = journal_file(app, row.id);
    match fs::remove_file(&file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("remove {}", file.display()));
        }
        _ => {}
    }
    let holders = app.db.tail_holders(row.id).await.context("list who has its journal")?;
    let from = (app.finder.peers(), &holders[..]);
    let gathered = gather(&file, from, row.id, content_key).await?;
    if !gathered.silent.is_empty() {
        let silent: Vec<String> = gathered.silent.iter().map(ToString::to_string).collect();
        bail!(
            "clients have the end of its journal and do not answer: {}. It is opened once they do",
            silent.join(", ")
        );
    }
    if gathered.generation.is_none() {
        // Clients know a root that covers all.
        make_journal(&app.data_dir, &app.store, row.id, (row.size, Durability::Mirrored)).await?;
    }
    tracing::info!(volume = row.name, clients = holders.len(), "a volume was taken over");
    Ok(())
}

/// What clients had of a journal.
pub(crate) struct Gathered {
    /// Of the last controller; none when they had nothing: there is no file then.
    pub(crate) generation: Option<Generation>,
    /// Who did not answer.
    pub(crate) silent: Vec<AgentId>,
}

/// Puts together what clients have of a journal, in a new file.
///
/// # Errors
/// When the file cannot be written.
pub(crate) async fn gather(
    file: &Path,
    (peers, clients): (&PeerClient, &[AgentId]),
    volume: VolumeId,
    content_key: &SealKey,
) -> anyhow::Result<Gathered> {
    let folder = file.parent().context("it has no folder")?;
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let mut options = File::options();
    let made = options.read(true).write(true).create_new(true).mode(0o600).open(file)?;
    let room = made.try_clone()?;
    let ring = TailRing::new(volume, made);
    let (ring, silent) = tails::gather(peers, clients, volume, content_key, ring).await?;
    let generation = ring.generation();
    if generation.is_none() {
        fs::remove_file(file)?;
        return Ok(Gathered { generation, silent });
    }
    // Where clients have nothing its space is to be there, too.
    let length = room.metadata()?.len();
    rustix::fs::fallocate(&room, FallocateFlags::empty(), 0, length)?;
    ring.sync()?;
    File::open(folder)?.sync_all()?;
    Ok(Gathered { generation, silent })
}

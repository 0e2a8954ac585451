//! An install without the server: an operator with the recovery key or a grant reads an image from the clients, to a disk or a file.
//!
//! That opens what a ticket would have brought, and this client's own papers open the door to the others.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Result;
use cairn_array::{
    install::{Fetcher, Image, install},
    random,
    wire::{InstallPhase, InstallProgress},
};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{Screen, flow::asked_disk, storage};
use crate::{
    dark::{self, Clients, Opener},
    home::Home,
};

/// Complaints that wait to be shown.
const COMPLAINTS: usize = 64;

/// Installs `image` to `disk`, from the clients alone.
///
/// # Errors
/// With the reason and what to do; run again, it goes on where it ended.
pub async fn run<S: Screen>(
    home: &Home,
    opener: &Opener,
    image: &str,
    disk: &Path,
    screen: S,
) -> Result<()> {
    let (catalog, Clients { peers, members, looking }) = dark::open(home, opener).await?;
    looking.found().await;
    let chosen = catalog.choose(Some(image))?;
    screen.say(&format!("installing {}, from {} clients", chosen.full_name(), members.len()));
    let opened = Image::open(&chosen.manifest, &catalog.signing_key, &chosen.content_key)?;
    let size = opened.public.size;
    let path = asked_disk(disk, size)?;
    let (disk, storage) = storage::open(path.clone(), size, None, &screen).await?;
    let maps = catalog.stripe_maps.into_iter().map(|map| map.map).collect();
    let seed = u64::from_le_bytes(random::array()?);
    let (complain, mut complaints) = mpsc::channel(COMPLAINTS);
    let fetcher = Fetcher::new(peers, maps, members, seed, complain);
    let (tell, mut progress) = watch::channel(InstallProgress::begin());
    let work = install(Arc::new(opened), disk, Arc::new(fetcher), tell, CancellationToken::new());
    let shown = async {
        loop {
            tokio::select! {
                changed = progress.changed() => match changed {
                    Ok(()) => screen.show(&progress.borrow_and_update()),
                    Err(_) => std::future::pending().await,
                },
                Some(complaint) = complaints.recv() => {
                    tracing::warn!(?complaint, "a client serves wrong");
                }
            }
        }
    };
    let done: InstallProgress = tokio::select! {
        outcome = work => outcome?,
        never = shown => never,
    };
    storage::enter(path, size, storage, &screen).await?;
    screen.show(&InstallProgress { phase: InstallPhase::Done, ..done });
    Ok(())
}

/// Refuses to export over something: an export makes a file.
///
/// # Errors
/// When there is something already.
pub fn require_new(file: &Path) -> Result<PathBuf> {
    anyhow::ensure!(
        !file.exists(),
        "{} is there already: name another file, or use `cairn-agent install` to bring it up to date",
        file.display()
    );
    Ok(file.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_export_overwrites_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("image.raw");
        assert_eq!(require_new(&file).unwrap(), file);
        std::fs::write(&file, "mine").unwrap();
        assert!(require_new(&file).unwrap_err().to_string().contains("name another file"));
    }
}

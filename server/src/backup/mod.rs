//! Backups: what the server knows and its clients do not, in one file that the recovery key alone opens.
//!
//! An age file (age-encryption.org/v1) to the site's recovery key, in it a zstd frame, in it a tar archive, so that
//! `age -d | zstd -d | tar x` opens it without Cairn. Its entries, in this order:
//!
//! | Entry | | Why here |
//! |---|---|---|
//! | `cairn-backup.json` | [`Header`] | who reads knows whether he can use it before he writes anything |
//! | `secrets/NAME` | the files of `DATA/secrets/` | without them the rest is of no use |
//! | `cairn.db` | the database, as it was at one moment | |
//! | `blobs/NAME` | manifests of images, roots of volumes and snapshots | read after the database, so that what it names is there |
//!
//! Segments are not in it: the store has them, and clients do. What a restored site says may be older than what its
//! clients have heard, so the numbers that they go by leap, as after `recover`.

pub(crate) mod make;
pub(crate) mod restore;

use serde::{Deserialize, Serialize};

const HEADER: &str = "cairn-backup.json";
const DATABASE: &str = "cairn.db";
const SECRETS: &str = "secrets/";
const BLOBS: &str = "blobs/";

/// The version of the format.
const FORMAT: u32 = 1;

/// What a backup is of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Header {
    pub(crate) format: u32,
    /// The fingerprint of the site's CA.
    pub(crate) site: String,
    /// Milliseconds since 1970.
    pub(crate) made: i64,
    /// The version of the program that made it.
    pub(crate) program: String,
}

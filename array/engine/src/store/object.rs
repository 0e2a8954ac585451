//! One object on one device: the calls to `object_store`, and what their errors mean here.

use std::{io, sync::Arc};

use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt, stream};
use object_store::{ObjectMeta, ObjectStoreExt, PutPayload, path::Path as ObjectPath};

use super::device::Device;
use crate::dsf::CheckError;

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the store has no device")]
    NoDevice,
    #[error("refused")]
    Check(#[from] CheckError),
    #[error("{object} is not in the store")]
    NotFound { object: String },
    #[error("{object} on store device {device} is damaged")]
    Corrupt { device: String, object: String },
    #[error("{object} is larger than {limit} bytes")]
    TooLarge { object: String, limit: u64 },
    /// Every device that could take the object is full; this is the last that was tried.
    #[error("store device {device} is full")]
    Full { device: String },
    #[error("store device {device} is missing: is its disk mounted, or its bucket there?")]
    Lost { device: String, source: io::Error },
    #[error("store device {device} could not make its data durable")]
    Unsynced { device: String, source: Arc<io::Error> },
    #[error("cannot {operation} {object} on store device {device}")]
    Device {
        device: String,
        operation: &'static str,
        object: String,
        source: Box<object_store::Error>,
    },
    #[error("the program is ending")]
    Ending,
}

pub(super) async fn put(
    device: &Device,
    path: &ObjectPath,
    bytes: &Bytes,
) -> Result<(), StoreError> {
    // Else the folders of a missing device would be made anew on the disk below it.
    device.check().await?;
    match device.backend().put(path, PutPayload::from_bytes(bytes.clone())).await {
        Ok(_) => Ok(()),
        Err(error) if is_full(&error) => Err(StoreError::Full { device: device.name().to_owned() }),
        Err(error) => Err(failed(device, "write", path, error)),
    }
}

/// Refuses what is larger than `limit` before reading it.
pub(super) async fn get(
    device: &Device,
    path: &ObjectPath,
    limit: u64,
) -> Result<Bytes, StoreError> {
    let found = match device.backend().get(path).await {
        Err(object_store::Error::NotFound { .. }) => {
            device.check().await?;
            return Err(StoreError::NotFound { object: path.to_string() });
        }
        found => found.map_err(|error| failed(device, "open", path, error))?,
    };
    if found.meta.size > limit {
        return Err(StoreError::TooLarge { object: path.to_string(), limit });
    }
    found.bytes().await.map_err(|error| failed(device, "read", path, error))
}

pub(super) async fn exists(device: &Device, path: &ObjectPath) -> Result<bool, StoreError> {
    match device.backend().head(path).await {
        Ok(_) => Ok(true),
        Err(object_store::Error::NotFound { .. }) => device.check().await.map(|()| false),
        Err(error) => Err(failed(device, "look at", path, error)),
    }
}

/// True when it was there.
pub(super) async fn delete(device: &Device, path: &ObjectPath) -> Result<bool, StoreError> {
    match device.backend().delete(path).await {
        Ok(()) => Ok(true),
        Err(object_store::Error::NotFound { .. }) => device.check().await.map(|()| false),
        Err(error) => Err(failed(device, "delete", path, error)),
    }
}

pub(super) fn list<'a>(
    device: &'a Device,
    prefix: &ObjectPath,
) -> impl Stream<Item = Result<ObjectMeta, StoreError>> + Send + use<'a> {
    let path = prefix.clone();
    let objects = device.backend().list(Some(prefix));
    let objects = objects.map_err(move |error| failed(device, "list", &path, error));
    // A missing device would list as an empty one.
    stream::once(device.check())
        .map_ok(|()| None)
        .chain(objects.map_ok(Some))
        .try_filter_map(|object| async move { Ok(object) })
}

/// Of what several devices answered, the error to tell: anything says more than "not here".
pub(super) fn worse(before: Option<StoreError>, error: StoreError) -> Option<StoreError> {
    match (before, error) {
        (None, error) => Some(error),
        (Some(before), StoreError::NotFound { .. }) => Some(before),
        (Some(_), error) => Some(error),
    }
}

/// Runs on a thread that may block.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, StoreError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => Ok(done),
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(StoreError::Ending),
    }
}

fn failed(
    device: &Device,
    operation: &'static str,
    path: &ObjectPath,
    source: object_store::Error,
) -> StoreError {
    StoreError::Device {
        device: device.name().to_owned(),
        operation,
        object: path.to_string(),
        source: Box::new(source),
    }
}

/// `object_store` has no kind for it: the I/O error is somewhere below.
fn is_full(error: &object_store::Error) -> bool {
    let mut below = Some(error as &(dyn std::error::Error + 'static));
    while let Some(error) = below {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return matches!(io.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        }
        below = error.source();
    }
    false
}

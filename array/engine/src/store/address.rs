//! Where a device of the store is: a folder, or an S3 bucket.

use std::{fmt, path::PathBuf, str::FromStr, sync::Arc, time::Duration};

use object_store::{
    ClientConfigKey, RetryConfig,
    aws::{AmazonS3Builder, AmazonS3ConfigKey},
    path::Path as ObjectPath,
    prefix::PrefixStore,
};

use super::device::{self, Device, DeviceFault, OpenDeviceError};

/// As long as one call to a bucket may take: a segment over a slow line.
const CALL: &str = "30 seconds";
const CONNECT: &str = "3 seconds";
/// A bucket that fails for longer than that fails its callers.
const RETRY_FOR: Duration = Duration::from_secs(10);

/// A folder, or `s3://BUCKET/PREFIX`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceAddress {
    Folder(PathBuf),
    Bucket(BucketAddress),
}

/// A bucket and what its objects' names begin with. Endpoint, region and keys are the environment's (`AWS_…`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BucketAddress {
    bucket: String,
    prefix: ObjectPath,
}

/// The text is no address of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseAddressError {
    #[error("names nothing")]
    Empty,
    #[error("a store is in folders and in buckets: name one as s3://BUCKET or s3://BUCKET/PREFIX")]
    Scheme,
    #[error("a bucket's name has 3 to 63 of a-z, 0-9, '-' and '.'")]
    Bucket,
    #[error("what follows the bucket is names joined by '/'")]
    Prefix,
}

impl FromStr for DeviceAddress {
    type Err = ParseAddressError;

    fn from_str(text: &str) -> Result<Self, ParseAddressError> {
        if text.is_empty() {
            return Err(ParseAddressError::Empty);
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            return Ok(Self::Folder(text.into()));
        };
        if scheme != "s3" {
            return Err(ParseAddressError::Scheme);
        }
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let allowed = |byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.');
        if !(3..=63).contains(&bucket.len()) || !bucket.bytes().all(allowed) {
            return Err(ParseAddressError::Bucket);
        }
        let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
        let prefix = ObjectPath::parse(prefix).map_err(|_| ParseAddressError::Prefix)?;
        Ok(Self::Bucket(BucketAddress { bucket: bucket.to_owned(), prefix }))
    }
}

impl fmt::Display for DeviceAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(folder) => folder.display().fmt(f),
            Self::Bucket(bucket) => bucket.fmt(f),
        }
    }
}

impl fmt::Display for BucketAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}", self.bucket)?;
        if self.prefix.as_ref().is_empty() { Ok(()) } else { write!(f, "/{}", self.prefix) }
    }
}

impl DeviceAddress {
    /// Makes a device of a folder that is new or empty, or of a bucket that has nothing there, and opens it.
    ///
    /// # Errors
    /// [`DeviceFault::NotEmpty`] when it has other files; [`DeviceFault`] for anything else in the way.
    pub async fn create(&self) -> Result<Device, OpenDeviceError> {
        match self {
            Self::Folder(folder) => Device::create(folder),
            Self::Bucket(bucket) => {
                let (name, backend) = (self.to_string(), bucket.backend());
                Device::create_remote(name.clone(), backend.map_err(in_bucket(name))?).await
            }
        }
    }

    /// Opens a device, locks it, and removes what a killed process was writing. On a bucket that a killed server used this
    /// takes 8 s.
    ///
    /// # Errors
    /// [`DeviceFault`]: missing, not marked as a store, not private, or in use.
    pub async fn open(&self) -> Result<Device, OpenDeviceError> {
        match self {
            Self::Folder(folder) => Device::open(folder),
            Self::Bucket(bucket) => {
                let (name, backend) = (self.to_string(), bucket.backend());
                Device::open_remote(name.clone(), backend.map_err(in_bucket(name))?).await
            }
        }
    }

    /// Opens a device, or makes it when there is nothing: for the first start only, since later an empty folder is a disk
    /// that is not mounted.
    ///
    /// # Errors
    /// As [`Self::create`] and [`Self::open`].
    pub async fn open_or_create(&self) -> Result<Device, OpenDeviceError> {
        match self {
            Self::Folder(folder) => Device::open_or_create(folder),
            Self::Bucket(_) => match self.open().await {
                Err(OpenDeviceError { fault: DeviceFault::Unmarked, .. }) => self.create().await,
                opened => opened,
            },
        }
    }
}

impl BucketAddress {
    /// Whether a device is there, without opening it.
    ///
    /// # Errors
    /// When the bucket cannot be reached, or is of another version of this program.
    pub async fn is_device(&self) -> Result<bool, OpenDeviceError> {
        let backend = self.backend().map_err(in_bucket(self.to_string()))?;
        match device::read_mark(&*backend).await {
            Ok(()) => Ok(true),
            Err(DeviceFault::Unmarked) => Ok(false),
            Err(fault) => Err(OpenDeviceError { device: self.to_string(), fault }),
        }
    }
}

fn in_bucket(device: String) -> impl FnOnce(object_store::Error) -> OpenDeviceError {
    move |error| OpenDeviceError { device, fault: DeviceFault::Backend(error) }
}

impl BucketAddress {
    fn backend(&self) -> object_store::Result<Arc<dyn object_store::ObjectStore>> {
        let patience =
            [(ClientConfigKey::Timeout, CALL), (ClientConfigKey::ConnectTimeout, CONNECT)];
        let mut builder = AmazonS3Builder::from_env().with_bucket_name(&self.bucket);
        for (key, value) in patience {
            builder = builder.with_config(AmazonS3ConfigKey::Client(key), value);
        }
        let retry = RetryConfig { max_retries: 3, retry_timeout: RETRY_FOR, ..Default::default() };
        let bucket = builder.with_retry(retry).build()?;
        Ok(Arc::new(PrefixStore::new(bucket, self.prefix.clone())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_and_buckets_are_told_apart() {
        for good in ["/srv/store", "store", "s3://images", "s3://images/lab/b", "a:b"] {
            assert_eq!(good.parse::<DeviceAddress>().unwrap().to_string(), good);
        }
        assert_eq!("s3://images/".parse(), "s3://images".parse::<DeviceAddress>());
        for (bad, error) in [
            ("", ParseAddressError::Empty),
            ("http://images", ParseAddressError::Scheme),
            ("s3://", ParseAddressError::Bucket),
            ("s3://im", ParseAddressError::Bucket),
            ("s3://Images", ParseAddressError::Bucket),
            ("s3://images/a//b", ParseAddressError::Prefix),
            ("s3://images/../b", ParseAddressError::Prefix),
        ] {
            assert_eq!(bad.parse::<DeviceAddress>(), Err(error), "{bad}");
        }
    }
}

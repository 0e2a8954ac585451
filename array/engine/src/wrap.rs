//! Wrapping content keys in the age format (age-encryption.org/v1) to the server's key and the site's recovery key.
//!
//! An age file of 32 bytes to two X25519 recipients: an administrator can open it with the age program and the
//! recovery key alone, without Cairn.

use std::{
    fs::File,
    io::{Read, Write},
    path::Path,
};

use age::{
    stream::{StreamReader, StreamWriter},
    x25519,
};
use anyhow::Context as _;
use cairn_core::seal::SealKey;

use crate::tls::Fingerprint;

/// A public key that something is wrapped to: `age1…`.
#[derive(Clone)]
pub struct Recipient(x25519::Recipient);

impl std::fmt::Debug for Recipient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Recipient({})", self.0)
    }
}

impl std::fmt::Display for Recipient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::str::FromStr for Recipient {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        x25519::Recipient::from_str(text.trim())
            .map(Self)
            .map_err(|reason| anyhow::anyhow!("read age recipient: {reason}"))
    }
}

/// A private key that opens what is wrapped to its recipient: `AGE-SECRET-KEY-1…`.
#[derive(Clone)]
pub struct Identity(x25519::Identity);

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Identity(..)")
    }
}

impl std::str::FromStr for Identity {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        x25519::Identity::from_str(text.trim())
            .map(Self)
            .map_err(|reason| anyhow::anyhow!("read age identity: {reason}"))
    }
}

impl Identity {
    /// A new key.
    #[must_use]
    pub fn generate() -> Self {
        Self(x25519::Identity::generate())
    }

    /// The key in a file as it is written for people: lines that begin with `#` are comments.
    fn of_key_file(text: &str) -> anyhow::Result<Self> {
        let mut lines = text.lines().map(str::trim);
        let key = lines.find(|line| !line.is_empty() && !line.starts_with('#'));
        key.context("find a line with AGE-SECRET-KEY-1…")?.parse()
    }

    /// The key's text, for the one file it is kept in.
    #[must_use]
    pub fn to_secret_text(&self) -> String {
        use age::secrecy::ExposeSecret as _;
        self.0.to_string().expose_secret().to_owned()
    }

    /// The public half.
    #[must_use]
    pub fn recipient(&self) -> Recipient {
        Recipient(self.0.to_public())
    }

    /// Opens a wrapped content key.
    ///
    /// # Errors
    /// When it is not wrapped to this key, or is no content key.
    pub fn unwrap_key(&self, wrapped: &[u8]) -> anyhow::Result<SealKey> {
        let plain = open(self, wrapped).context("open the wrapped content key")?;
        let key = plain.as_slice().try_into().context("a content key is 32 bytes")?;
        Ok(SealKey(key))
    }
}

/// What stands before the fingerprint of the site's CA in the file of a recovery key.
pub const SITE_LINE: &str = "# Site: ";
/// The largest such file: a key and the advice around it.
const MAX_KEY_FILE: u64 = 64 << 10;

/// A recovery key as an administrator keeps it.
#[derive(Clone, Debug)]
pub struct RecoveryKey {
    pub identity: Identity,
    /// The CA of its site, when the file names it.
    pub site: Option<Fingerprint>,
}

impl RecoveryKey {
    /// Reads the file that the server's first start wrote, or one with the key alone.
    ///
    /// # Errors
    /// When it cannot be read, or has no key.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let what = || format!("read recovery key {}", path.display());
        let mut text = String::new();
        File::open(path)
            .and_then(|file| file.take(MAX_KEY_FILE).read_to_string(&mut text))
            .with_context(what)?;
        let site = text.lines().find_map(|line| line.strip_prefix(SITE_LINE));
        let site = site.map(|hex| hex.trim().parse()).transpose().with_context(what)?;
        Ok(Self { identity: Identity::of_key_file(&text).with_context(what)?, site })
    }
}

/// Wraps a content key so that each of `recipients` alone can open it.
///
/// # Errors
/// When there is no recipient.
pub fn wrap_key(key: &SealKey, recipients: &[Recipient]) -> anyhow::Result<Vec<u8>> {
    seal(&key.0, recipients).context("wrap the content key")
}

/// An age file that each of `recipients` alone can open.
pub(crate) fn seal(plain: &[u8], recipients: &[Recipient]) -> anyhow::Result<Vec<u8>> {
    let recipients = recipients.iter().map(|recipient| &recipient.0 as &dyn age::Recipient);
    let encryptor = age::Encryptor::with_recipients(recipients)?;
    let mut sealed = Vec::new();
    let mut writer = encryptor.wrap_output(&mut sealed)?;
    writer.write_all(plain)?;
    writer.finish()?;
    Ok(sealed)
}

/// An age file that `recipient` alone can open, written as its plain text comes. It is whole once it is finished.
///
/// # Errors
/// When `out` does not take its beginning.
pub fn sealing<W: Write>(out: W, recipient: &Recipient) -> anyhow::Result<StreamWriter<W>> {
    let recipient: &dyn age::Recipient = &recipient.0;
    let encryptor = age::Encryptor::with_recipients(std::iter::once(recipient))?;
    encryptor.wrap_output(out).context("begin an age file")
}

/// The plain text of an age file, as it is read. That the file was cut off shows at the end.
///
/// # Errors
/// When it is no age file, or not for this key.
pub fn opening<R: Read>(identity: &Identity, sealed: R) -> anyhow::Result<StreamReader<R>> {
    let decryptor = age::Decryptor::new(sealed).context("read the age file")?;
    let identity: &dyn age::Identity = &identity.0;
    decryptor.decrypt(std::iter::once(identity)).context("open the age file with this key")
}

/// The plain text of an age file.
pub(crate) fn open(identity: &Identity, sealed: &[u8]) -> anyhow::Result<Vec<u8>> {
    Ok(age::decrypt(&identity.0, sealed)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_recipient_opens_alone_and_a_stranger_does_not() {
        let (server, recovery) = (Identity::generate(), Identity::generate());
        let key = SealKey([42; 32]);
        let wrapped = wrap_key(&key, &[server.recipient(), recovery.recipient()]).unwrap();
        assert!(wrapped.starts_with(b"age-encryption.org/v1\n"));
        for identity in [&server, &recovery] {
            let again: Identity = identity.to_secret_text().parse().unwrap();
            assert_eq!(again.unwrap_key(&wrapped).unwrap().0, key.0);
        }
        assert!(Identity::generate().unwrap_key(&wrapped).is_err());
        let recipient: Recipient = server.recipient().to_string().parse().unwrap();
        assert_eq!(recipient.to_string(), server.recipient().to_string());
    }

    #[test]
    fn a_key_file_holds_advice_the_site_and_the_key() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let key = Identity::generate();
        let read = |text: String| {
            std::fs::write(&path, text).unwrap();
            RecoveryKey::read(&path)
        };
        let whole = format!("# advice\n{SITE_LINE}{}\n{}\n", "ab".repeat(32), key.to_secret_text());
        let found = read(whole).unwrap();
        assert_eq!(found.site, Some(Fingerprint([0xab; 32])));
        assert_eq!(found.identity.to_secret_text(), key.to_secret_text());
        assert_eq!(read(key.to_secret_text()).unwrap().site, None);
        assert!(read(format!("{SITE_LINE}nothing\n{}", key.to_secret_text())).is_err());
        let none = format!("{:#}", read("# advice\n".to_owned()).unwrap_err());
        assert!(none.contains("AGE-SECRET-KEY"), "{none}");
    }
}

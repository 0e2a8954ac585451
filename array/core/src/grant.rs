//! The grant: what lets one client read some image versions without the server, for a time.
//!
//! ```text
//! offset  size  field
//!      0     8  magic "CAIRNGRT"
//!      8     2  version = 1
//!     10     2  reserved, zero
//!     12    16  site id
//!     28    16  agent id: whose operator it is for
//!     44     8  given, seconds since 1970 UTC
//!     52     8  expires, seconds since 1970 UTC
//!     60     4  count (1 to 1024), then for each:
//!                 version id (16), content key (32), number (u32), name (u32 length 1 to 64, UTF-8)
//!      …    64  Ed25519 signature of all the above, context "cairn grant 1"
//! ```
//!
//! Whom it is for and until when stand at fixed places before what it opens, so that a grant is refused before a key is read.
//! The keys are in it as they are: the file is as secret as the images. What expires is the word of the site, which its clients
//! keep; who has copied the keys out of it has them for good, so a grant is for operators who may read the image anyway.

use crate::{
    bytes::{DecodeError, Reader, Writer},
    id::{AgentId, SiteId, VersionId},
    seal::SealKey,
    sign::{SIGNATURE_BYTES, SigningKey, VerifyingKey},
};

const MAGIC: [u8; 8] = *b"CAIRNGRT";
const VERSION: u16 = 1;
const CONTEXT: &str = "cairn grant 1";
/// The most versions that one grant opens.
pub const MAX_VERSIONS: usize = 1024;
const MAX_NAME_BYTES: usize = 64;
const HEADER_BYTES: usize = 64;
const VERSION_BYTES: usize = 16 + 32 + 4 + 4 + MAX_NAME_BYTES;
/// The longest signed grant.
pub const MAX_BYTES: usize = HEADER_BYTES + MAX_VERSIONS * VERSION_BYTES + SIGNATURE_BYTES;

/// A signed permission. See the module's table.
#[derive(Clone, Debug)]
pub struct Grant {
    pub site: SiteId,
    pub agent: AgentId,
    /// Seconds since 1970 UTC.
    pub given: u64,
    /// Seconds since 1970 UTC.
    pub expires: u64,
    pub versions: Vec<GrantedVersion>,
}

/// An image version that a grant opens.
#[derive(Clone)]
pub struct GrantedVersion {
    pub version: VersionId,
    pub content_key: SealKey,
    pub name: String,
    pub number: u32,
}

impl std::fmt::Debug for GrantedVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "GrantedVersion({}@{})", self.name, self.number)
    }
}

/// Why a grant opens nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotGranted {
    #[error("the grant is not one that this site signed")]
    Unreadable(#[from] DecodeError),
    #[error("the grant is of another site")]
    OtherSite,
    #[error("the grant is for client {0}: each client needs its own")]
    OtherAgent(AgentId),
    #[error(
        "the grant has expired: ask the site's administrator for another (`cairn-server agent grant`)"
    )]
    Expired,
}

impl Grant {
    /// The signed document.
    #[must_use]
    pub fn seal(&self, signer: &SigningKey) -> Vec<u8> {
        let mut writer = Writer::with_header(MAGIC, VERSION);
        writer.u16(0);
        writer.put(self.site.as_bytes());
        writer.put(self.agent.as_bytes());
        writer.u64(self.given);
        writer.u64(self.expires);
        writer.count(self.versions.len());
        for version in &self.versions {
            writer.put(version.version.as_bytes());
            writer.put(&version.content_key.0);
            writer.u32(version.number);
            writer.bytes(version.name.as_bytes());
        }
        signer.sign(CONTEXT, writer.finish())
    }

    /// Checks who signed it, for whom it is and that it has not expired, `now` in seconds since 1970 UTC.
    ///
    /// # Errors
    /// [`NotGranted`].
    pub fn open(
        signed: &[u8],
        verifier: &VerifyingKey,
        site: SiteId,
        agent: AgentId,
        now: u64,
    ) -> Result<Self, NotGranted> {
        let body = verifier.open(CONTEXT, signed)?;
        let grant = Self::decode(body)?;
        if grant.site != site {
            return Err(NotGranted::OtherSite);
        }
        if grant.agent != agent {
            return Err(NotGranted::OtherAgent(grant.agent));
        }
        if grant.expires <= now {
            return Err(NotGranted::Expired);
        }
        Ok(grant)
    }

    /// Reads a body whose signature was checked.
    ///
    /// # Errors
    /// When the bytes are no grant of this version.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(body);
        reader.header(MAGIC, VERSION)?;
        reader.reserved(2)?;
        let (site, agent) = (SiteId(reader.array()?), AgentId(reader.array()?));
        let (given, expires) = (reader.u64()?, reader.u64()?);
        let least = VERSION_BYTES - MAX_NAME_BYTES;
        let count = reader.count("granted versions", MAX_VERSIONS, least)?;
        let versions = (0..count).map(|_| version(&mut reader)).collect::<Result<_, _>>()?;
        reader.finish()?;
        if count == 0 {
            return Err(DecodeError::Inconsistent { field: "granted versions" });
        }
        Ok(Self { site, agent, given, expires, versions })
    }
}

fn version(reader: &mut Reader<'_>) -> Result<GrantedVersion, DecodeError> {
    let version = VersionId(reader.array()?);
    let content_key = SealKey(reader.array()?);
    let number = reader.u32()?;
    let name = std::str::from_utf8(reader.bytes("name", MAX_NAME_BYTES)?);
    let name = name.map_err(|_| DecodeError::Inconsistent { field: "name" })?;
    if name.is_empty() {
        return Err(DecodeError::Inconsistent { field: "name" });
    }
    Ok(GrantedVersion { version, content_key, name: name.to_owned(), number })
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    const SITE: SiteId = SiteId([3; 16]);
    const AGENT: AgentId = AgentId([4; 16]);

    fn grant(expires: u64) -> Grant {
        let version = GrantedVersion {
            version: VersionId([5; 16]),
            content_key: SealKey([6; 32]),
            name: "lab".to_owned(),
            number: 2,
        };
        Grant { site: SITE, agent: AGENT, given: 100, expires, versions: vec![version] }
    }

    fn signer() -> SigningKey {
        SigningKey::from_seed(&[1; 32]).unwrap()
    }

    proptest! {
        #[test]
        fn grants_round_trip(
            versions in vec(
                (any::<[u8; 16]>(), any::<[u8; 32]>(), any::<u32>(), "[a-zä-ö0-9]{1,32}"), 1..20,
            ),
            (given, expires) in any::<(u64, u64)>(),
        ) {
            let versions = versions.into_iter().map(|(version, key, number, name)| GrantedVersion {
                version: VersionId(version),
                content_key: SealKey(key),
                name,
                number,
            });
            let grant =
                Grant { site: SITE, agent: AGENT, given, expires, versions: versions.collect() };
            let signed = grant.seal(&signer());
            prop_assert!(signed.len() <= MAX_BYTES);
            let body = &signed[..signed.len() - SIGNATURE_BYTES];
            prop_assert_eq!(Grant::decode(body).unwrap().seal(&signer()), signed);
        }

        #[test]
        fn foreign_bytes_never_panic(bytes in vec(any::<u8>(), 0..300)) {
            let mut body = b"CAIRNGRT\x01\0\0\0".to_vec();
            body.extend(bytes);
            if let Ok(grant) = Grant::decode(&body) {
                let signed = grant.seal(&signer());
                prop_assert_eq!(&signed[..signed.len() - SIGNATURE_BYTES], &body[..]);
            }
        }
    }

    #[test]
    fn a_grant_is_for_one_client_of_one_site_until_it_expires() {
        let key = signer().verifying_key();
        let signed = grant(200).seal(&signer());
        let open = |signed: &[u8], key, site, agent, now| {
            let grant = Grant::open(signed, key, site, agent, now)?;
            let keys = grant.versions.iter().map(|version| version.content_key.0);
            Ok((grant.expires, keys.collect::<Vec<_>>()))
        };
        assert_eq!(open(&signed, &key, SITE, AGENT, 199), Ok((200, vec![[6; 32]])));
        assert_eq!(open(&signed, &key, SITE, AGENT, 200), Err(NotGranted::Expired));
        let other = AgentId([9; 16]);
        assert_eq!(open(&signed, &key, SITE, other, 199), Err(NotGranted::OtherAgent(AGENT)));
        let elsewhere = SiteId([9; 16]);
        assert_eq!(open(&signed, &key, elsewhere, AGENT, 199), Err(NotGranted::OtherSite));
        // Forged in any byte, or signed by somebody else: a later expiry, for one.
        for at in 0..signed.len() {
            let mut forged = signed.clone();
            forged[at] ^= 1;
            let refused = open(&forged, &key, SITE, AGENT, 199);
            assert_eq!(refused, Err(NotGranted::Unreadable(DecodeError::Signature)));
        }
        let own = SigningKey::from_seed(&[2; 32]).unwrap();
        let refused = open(&grant(200).seal(&own), &key, SITE, AGENT, 199);
        assert_eq!(refused, Err(NotGranted::Unreadable(DecodeError::Signature)));
    }

    #[test]
    fn a_grant_of_nothing_is_none() {
        let empty = Grant { versions: Vec::new(), ..grant(200) };
        let signed = empty.seal(&signer());
        assert!(Grant::decode(&signed[..signed.len() - SIGNATURE_BYTES]).is_err());
    }
}

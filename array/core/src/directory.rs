//! The directory: who belongs to the site and where they are. Every member keeps the newest.
//!
//! ```text
//! offset  size  field
//!      0     8  magic "CAIRNDIR"
//!      8     2  version = 2
//!     10     2  reserved, zero
//!     12    16  site id
//!     28     8  number: a directory replaces only those with smaller numbers
//!     36   4+n  the site's authority, for the recovery key alone (an age file, ≤ 8192)
//!      …     …  where the server is: an address as of a member
//!      …     4  bundle segment count (≤ 256), then for each: id (32), bytes (u32)
//!      …     4  member count (≤ 65535), then for each:
//!                 agent id (16), address kind (u8: 0 none, 4, 6), address (0, 4 or 16), port (u16 unless none),
//!                 name (u32 length ≤ 255, UTF-8)
//!      …     4  revoked count (≤ 1048576), then their agent ids (16 each)
//!      …    64  Ed25519 signature of all the above, context "cairn directory 2"
//! ```
//!
//! Site and number stand at fixed places, so that an old or foreign directory is told without reading the members. What a
//! stand-in needs to begin comes before the lists that grow with the fleet.

use std::net::{IpAddr, SocketAddr};

use crate::{
    bundle,
    bytes::{DecodeError, Reader, Writer},
    id::{AgentId, SiteId},
    manifest::{self, SegmentEntry},
    sign::{SigningKey, VerifyingKey},
    units::Generation,
};

const MAGIC: [u8; 8] = *b"CAIRNDIR";
const VERSION: u16 = 2;
const CONTEXT: &str = "cairn directory 2";
const MAX_MEMBERS: usize = 65_535;
const MAX_REVOKED: usize = 1 << 20;
const MAX_NAME_BYTES: usize = 255;
const MAX_AUTHORITY_BYTES: usize = 8192;

/// A signed list of members. See the module's table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directory {
    pub site: SiteId,
    pub number: Generation,
    /// CA and signing key, wrapped to the site's recovery key alone: who has that can act for the server.
    pub authority: Vec<u8>,
    /// Where the server is, as it says itself.
    pub server: Option<SocketAddr>,
    /// The segments of the [`bundle`], in order; empty until clients hold one.
    pub bundle: Vec<SegmentEntry>,
    /// Approved agents.
    pub members: Vec<MemberEntry>,
    /// Agents whose certificates are no longer accepted, although they have not expired.
    pub revoked: Vec<AgentId>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberEntry {
    pub agent: AgentId,
    /// For people; a name is no identity.
    pub name: String,
    /// Its peer service, when it was ever seen.
    pub addr: Option<SocketAddr>,
}

impl Directory {
    /// The signed document.
    #[must_use]
    pub fn seal(&self, signer: &SigningKey) -> Vec<u8> {
        let mut writer = Writer::with_header(MAGIC, VERSION);
        writer.u16(0);
        writer.put(self.site.as_bytes());
        writer.u64(self.number.0);
        writer.bytes(&self.authority);
        put_address(&mut writer, self.server);
        writer.count(self.bundle.len());
        for segment in &self.bundle {
            writer.put(segment.id.as_bytes());
            writer.u32(segment.bytes);
        }
        writer.count(self.members.len());
        for member in &self.members {
            writer.put(member.agent.as_bytes());
            put_address(&mut writer, member.addr);
            writer.bytes(member.name.as_bytes());
        }
        writer.count(self.revoked.len());
        for agent in &self.revoked {
            writer.put(agent.as_bytes());
        }
        signer.sign(CONTEXT, writer.finish())
    }

    /// Checks the signature and reads the directory.
    ///
    /// # Errors
    /// When the site did not sign these bytes, or they are no directory of this version.
    pub fn open(verifier: &VerifyingKey, signed: &[u8]) -> Result<Self, DecodeError> {
        Self::decode(verifier.open(CONTEXT, signed)?)
    }

    /// Reads a body whose signature was checked.
    ///
    /// # Errors
    /// When the bytes are no directory of this version.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(body);
        reader.header(MAGIC, VERSION)?;
        reader.reserved(2)?;
        let site = SiteId(reader.array()?);
        let number = Generation(reader.u64()?);
        let authority = reader.bytes("authority", MAX_AUTHORITY_BYTES)?.to_vec();
        let server = address(&mut reader)?;
        let bundle = manifest::entries(&mut reader, "bundle segments", bundle::MAX_SEGMENTS)?;
        let count = reader.count("members", MAX_MEMBERS, AgentId::BYTES + 5)?;
        let members = (0..count).map(|_| member(&mut reader)).collect::<Result<_, _>>()?;
        let count = reader.count("revoked", MAX_REVOKED, AgentId::BYTES)?;
        let revoked = (0..count).map(|_| reader.array().map(AgentId)).collect::<Result<_, _>>()?;
        reader.finish()?;
        Ok(Self { site, number, authority, server, bundle, members, revoked })
    }

    /// Whether `agent` may be served and asked.
    #[must_use]
    pub fn is_member(&self, agent: &AgentId) -> bool {
        self.members.iter().any(|member| member.agent == *agent) && !self.revoked.contains(agent)
    }
}

fn put_address(writer: &mut Writer, addr: Option<SocketAddr>) {
    match addr.map(|addr| (addr.ip(), addr.port())) {
        None => writer.u8(0),
        Some((IpAddr::V4(ip), port)) => {
            writer.u8(4);
            writer.put(&ip.octets());
            writer.u16(port);
        }
        Some((IpAddr::V6(ip), port)) => {
            writer.u8(6);
            writer.put(&ip.octets());
            writer.u16(port);
        }
    }
}

fn address(reader: &mut Reader<'_>) -> Result<Option<SocketAddr>, DecodeError> {
    let ip = match reader.u8()? {
        0 => return Ok(None),
        4 => IpAddr::from(reader.array::<4>()?),
        6 => IpAddr::from(reader.array::<16>()?),
        _ => return Err(DecodeError::Inconsistent { field: "address kind" }),
    };
    Ok(Some(SocketAddr::new(ip, reader.u16()?)))
}

fn member(reader: &mut Reader<'_>) -> Result<MemberEntry, DecodeError> {
    let agent = AgentId(reader.array()?);
    let addr = address(reader)?;
    let name = reader.text("name", MAX_NAME_BYTES)?.to_owned();
    Ok(MemberEntry { agent, name, addr })
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::id::SegmentId;

    proptest! {
        #[test]
        fn directories_round_trip(
            members in vec((any::<[u8; 16]>(), "[a-zä-ö0-9 ]{0,40}", any::<Option<SocketAddr>>()), 0..20),
            revoked in vec(any::<[u8; 16]>(), 0..5),
            bundle in vec((any::<[u8; 32]>(), 1_u32..=4 << 20), 0..5),
            authority in vec(any::<u8>(), 0..100),
            server in any::<Option<SocketAddr>>(),
            number in any::<u64>(),
        ) {
            let members = members
                .into_iter()
                .map(|(agent, name, addr)| MemberEntry {
                    agent: AgentId(agent),
                    name,
                    // Flow and scope of IPv6 are local to a host and not part of an address for others.
                    addr: addr.map(|addr| SocketAddr::new(addr.ip(), addr.port())),
                })
                .collect();
            let revoked = revoked.into_iter().map(AgentId).collect();
            let bundle = bundle
                .into_iter()
                .map(|(id, bytes)| SegmentEntry { id: SegmentId(id), bytes })
                .collect();
            let (site, number) = (SiteId([3; 16]), Generation(number));
            let server = server.map(|addr| SocketAddr::new(addr.ip(), addr.port()));
            let directory = Directory { site, number, authority, server, bundle, members, revoked };
            let signer = SigningKey::from_seed(&[1; 32]).unwrap();
            let signed = directory.seal(&signer);
            prop_assert_eq!(Directory::open(&signer.verifying_key(), &signed).unwrap(), directory);
        }

        #[test]
        fn foreign_bytes_never_panic(bytes in vec(any::<u8>(), 0..300)) {
            let mut body = b"CAIRNDIR\x02\0\0\0".to_vec();
            body.extend(bytes);
            if let Ok(directory) = Directory::decode(&body) {
                prop_assert!(directory.members.len() <= 300);
            }
        }
    }

    #[test]
    fn a_revoked_agent_is_no_member() {
        let agent = AgentId([1; 16]);
        let entry = MemberEntry { agent, name: "pc-1".to_owned(), addr: None };
        let mut directory = Directory {
            site: SiteId([3; 16]),
            number: Generation(1),
            authority: Vec::new(),
            server: None,
            bundle: Vec::new(),
            members: vec![entry],
            revoked: Vec::new(),
        };
        assert!(directory.is_member(&agent));
        directory.revoked.push(agent);
        assert!(!directory.is_member(&agent));
        assert!(!directory.is_member(&AgentId([2; 16])));
    }
}

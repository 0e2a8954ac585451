//! The site's CA. It chooses every name; of a request only the public key counts.

use std::{collections::BTreeSet, fmt, net::IpAddr, time::Duration};

use anyhow::Context as _;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use time::OffsetDateTime;
use x509_parser::{certificate::X509Certificate, prelude::FromDer as _};

use super::{Member, Papers, key::certificate};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// A site outlives its hardware.
const CA_LIFE: Duration = Duration::from_secs(30 * 365 * 24 * 60 * 60);
/// The longest that all browsers accept; it is made anew at each start.
const SERVER_LIFE: Duration = Duration::from_secs(820 * 24 * 60 * 60);
/// Renewed when half of it is over.
pub const AGENT_LIFE: Duration = Duration::from_secs(2 * 365 * 24 * 60 * 60);
const TARGET_LIFE: Duration = DAY;
/// Clocks of blank machines are wrong by hours, and those of old clients by weeks: a clock that is behind must not keep a
/// member from talking to the others.
const BACKDATED: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// A certificate that was just made.
#[derive(Clone, Debug)]
pub struct Certified {
    pub certificate_pem: String,
    /// Random, 16 bytes, positive.
    pub serial: Vec<u8>,
}

/// The CA's certificate and key.
pub struct Authority {
    ca_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Authority(..)")
    }
}

/// A new CA: certificate and key, both PEM.
///
/// # Errors
/// When the system has no randomness to give.
pub fn new_authority() -> anyhow::Result<(String, String)> {
    let key = KeyPair::generate().context("make the CA's key")?;
    let mut params = params("Cairn site CA", CA_LIFE)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = params.self_signed(&key).context("sign the CA's certificate")?;
    Ok((certificate.pem(), key.serialize_pem()))
}

impl Authority {
    /// The CA of this certificate and key, both PEM.
    ///
    /// # Errors
    /// When one of them cannot be read.
    pub fn new(ca_pem: String, key_pem: &str) -> anyhow::Result<Self> {
        let key = KeyPair::from_pem(key_pem).context("read the CA's key")?;
        let issuer = Issuer::from_ca_cert_pem(&ca_pem, key).context("read the CA's certificate")?;
        Ok(Self { ca_pem, issuer })
    }

    /// The CA's certificate.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// A certificate that makes the holder of this key (SubjectPublicKeyInfo, DER) a member.
    ///
    /// # Errors
    /// When the key is of a kind that is not supported.
    pub fn certify(&self, member: &Member, public_key_der: &[u8]) -> anyhow::Result<Certified> {
        let life = match member {
            Member::Server => SERVER_LIFE,
            Member::Agent(_) | Member::Volume(_) => AGENT_LIFE,
            Member::Target(_) => TARGET_LIFE,
        };
        let key = SubjectPublicKeyInfo::from_der(public_key_der).context("read the public key")?;
        let mut params = params(&member.dns_name(), life)?;
        params.subject_alt_names = vec![dns(&member.dns_name())?];
        // Agents serve their peers, and so do targets: both ends.
        self.sign(params, &key)
    }

    /// Papers for a server with these names and addresses, with a new key.
    ///
    /// # Errors
    /// When the system has no randomness to give, or the CA's key does not sign.
    pub fn certify_server(
        &self,
        hostname: Option<&str>,
        addresses: &BTreeSet<IpAddr>,
    ) -> anyhow::Result<Papers> {
        let key = KeyPair::generate().context("make the server's key")?;
        let name = Member::Server.dns_name();
        let mut params = params(&name, SERVER_LIFE)?;
        // First the name that certificates of members are told apart by, then what people and blank machines use.
        params.subject_alt_names = vec![dns(&name)?, dns("localhost")?];
        if let Some(san) = hostname.and_then(|name| dns(name).ok()) {
            params.subject_alt_names.push(san);
        }
        params.subject_alt_names.extend(addresses.iter().copied().map(SanType::IpAddress));
        let certified = self.sign(params, &key)?;
        Ok(Papers {
            certificate_pem: certified.certificate_pem,
            key_pem: key.serialize_pem(),
            ca_pem: self.ca_pem.clone(),
        })
    }

    fn sign(
        &self,
        mut params: CertificateParams,
        key: &impl PublicKeyData,
    ) -> anyhow::Result<Certified> {
        let mut serial = crate::random::array::<16>()?;
        // RFC 5280: positive, and without a leading zero byte, so that the kept bytes are the encoded ones.
        serial[0] = serial[0] & 0x7f | 0x40;
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(key, &self.issuer).context("sign a certificate")?;
        Ok(Certified { certificate_pem: certificate.pem(), serial: serial.to_vec() })
    }
}

/// Until when a certificate (PEM) is valid, in seconds since 1970.
///
/// # Errors
/// When it is none.
pub fn valid_until(certificate_pem: &str) -> anyhow::Result<i64> {
    let der = certificate(certificate_pem)?;
    let (_, certificate) = X509Certificate::from_der(&der).context("read a certificate")?;
    Ok(certificate.validity().not_after.timestamp())
}

fn params(name: &str, life: Duration) -> anyhow::Result<CertificateParams> {
    let mut params = CertificateParams::new(Vec::new()).context("begin a certificate")?;
    let now = OffsetDateTime::now_utc();
    params.not_before = now - BACKDATED;
    params.not_after = now + life;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    Ok(params)
}

fn dns(name: &str) -> anyhow::Result<SanType> {
    Ok(SanType::DnsName(name.try_into().context("write a DNS name")?))
}

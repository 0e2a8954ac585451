//! The commands that make a machine a client, as they are printed everywhere.

use std::net::SocketAddr;

use cairn_array::tls::Token;

/// Disk space that a printed command lends: room for a few images, little on any disk of today.
const LEND: &str = "20GiB";
/// Where a client puts the package: a folder that root alone writes, and apt's own user reads.
const DOWNLOAD: &str = "/var/cache/apt/archives/cairn-agent.deb";
/// The path of the agent's package on the HTTPS service.
pub(crate) const PACKAGE_PATH: &str = "/install/agent.deb";

/// How a machine joins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinCommands {
    /// For a machine that has the agent.
    pub join: String,
    /// For a machine without it: installs the server's package first. None when the server has none.
    pub install: Option<String>,
}

impl JoinCommands {
    /// For the server at `address`, whose package of the agent has this SHA-256.
    pub(crate) fn new(address: SocketAddr, token: &Token, package: Option<&str>) -> Self {
        let url = format!("https://{address}");
        let join = format!("cairn-agent join {url} {token} --lend {LEND}");
        // The client does not know the site's CA yet: the digest is what it trusts. Not every Debian has curl.
        let install = package.map(|sha256| {
            format!(
                "f={DOWNLOAD}; u={url}{PACKAGE_PATH}; \
                 {{ curl -fsSko $f $u || wget -qO $f --no-check-certificate $u; }} && \
                 echo \"{sha256}  $f\" | sha256sum -c && apt-get install -y $f && {join}"
            )
        });
        Self { join, install }
    }

    /// The one that works on any machine.
    #[must_use]
    pub fn fullest(&self) -> &str {
        self.install.as_ref().unwrap_or(&self.join)
    }
}

//! Who is asking: which firmware, which architecture, and what it can boot.

use super::packet::{Packet, code};
use super::{Config, IgnoreReason};
use crate::identity::MachineUuid;

/// What a request says about the machine's boot firmware. Only options are read, never the text behind
/// `PXEClient:Arch:`: iPXE, started through a ProxyDHCP, sends a bare `PXEClient`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    pub firmware: Firmware,
    pub architecture: Option<Architecture>,
    pub uuid: Option<MachineUuid>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Firmware {
    /// A boot ROM or UEFI with a PXE stack; loads by TFTP.
    Pxe,
    /// UEFI HTTP Boot; loads by HTTP and must see its class echoed.
    Http,
    /// iPXE, from ROM or loaded by us; runs scripts over HTTP.
    Ipxe,
    /// An operating system or anything else that only wants an address.
    Other,
}

/// From option 93 (RFC 4578 section 2.1, IANA "Processor Architecture Types").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    Bios,
    UefiX64,
    UefiX64Http,
}

/// The first loaders, by name in the table of boot files.
///
/// UEFI gets the one that uses the firmware's own driver, which just proved that it works. `ipxe.efi`, with drivers of its
/// own, never returns to the firmware when a script exits (seen with iPXE of 2019 under OVMF: it hangs), so that a machine
/// sent to its local disk would stay where it is; it is in the table for servers of others that name it.
pub(crate) const BIOS_LOADER: &str = "undionly.kpxe";
pub(crate) const UEFI_LOADER: &str = "snponly.efi";
pub const LOADERS: [&str; 3] = [BIOS_LOADER, UEFI_LOADER, "ipxe.efi"];

impl Client {
    pub fn of(request: &Packet) -> Self {
        let class = request.options.get(code::CLASS).unwrap_or_default();
        // Option 77 is the raw text here; RFC 3004 would have a length before it, which some builds send.
        let user_class = request.options.get(code::USER_CLASS).unwrap_or_default();
        let is_ipxe = matches!(user_class, b"iPXE" | b"\x04iPXE")
            || request.options.get(code::IPXE).is_some();
        let firmware = if is_ipxe {
            Firmware::Ipxe
        } else if class.starts_with(b"PXEClient") {
            Firmware::Pxe
        } else if class.starts_with(b"HTTPClient") {
            Firmware::Http
        } else {
            Firmware::Other
        };
        let architectures = request.options.get(code::ARCHITECTURE).unwrap_or_default();
        Self {
            firmware,
            // A list in order of preference; the first one we know counts.
            architecture: architectures.chunks_exact(2).find_map(Architecture::from_wire),
            uuid: request.options.get(code::MACHINE_UUID).and_then(MachineUuid::from_option_97),
        }
    }

    /// What this machine is to load first, or why we have nothing for it.
    pub(crate) fn boot_file<'a>(&self, config: &'a Config) -> Result<&'a str, IgnoreReason> {
        let unsupported = IgnoreReason::UnsupportedArchitecture;
        match (self.firmware, self.architecture.ok_or(unsupported)?) {
            (Firmware::Ipxe, _) => Ok(&config.script_url),
            (Firmware::Http, Architecture::UefiX64Http) => Ok(&config.http_loader_url),
            (Firmware::Pxe, Architecture::Bios) => Ok(BIOS_LOADER),
            (Firmware::Pxe, Architecture::UefiX64) => Ok(UEFI_LOADER),
            (Firmware::Http, _) | (Firmware::Pxe, Architecture::UefiX64Http) => Err(unsupported),
            (Firmware::Other, _) => Err(IgnoreReason::NotABootClient),
        }
    }

    /// The class that is echoed so that the firmware takes our offer as one for it.
    pub(crate) fn class_to_echo(&self) -> Vec<u8> {
        match self.firmware {
            Firmware::Http => b"HTTPClient".to_vec(),
            Firmware::Pxe | Firmware::Ipxe | Firmware::Other => b"PXEClient".to_vec(),
        }
    }
}

impl Architecture {
    fn from_wire(value: &[u8]) -> Option<Self> {
        match value {
            [0, 0] => Some(Self::Bios),
            // 7 is "EFI BC" in the RFC and x86-64 in every firmware since its erratum; 9 the other way round.
            [0, 7 | 9] => Some(Self::UefiX64),
            [0, 16] => Some(Self::UefiX64Http),
            _ => None,
        }
    }
}

/// Puts the boot file where a firmware may look: the header's `file` field, and option 67. The option's value ends in
/// NUL because some ROMs use it in place as a C string.
pub(crate) fn put_boot_file(reply: &mut Packet, file: &str) {
    reply.file = file.as_bytes().to_vec();
    let mut value = file.as_bytes().to_vec();
    value.push(0);
    reply.options.push(code::BOOT_FILE, value);
}

//! The iPXE scripts, as texts made by pure functions.
//!
//! ```text
//! DHCP names start.ipxe ─► chain menu.ipxe?mac=…&uuid=…  ─► kernel + initrd, boot
//!                              ▲                          ─► local disk
//!                              └── sleep, ask again ◄──── ─► wait
//! ```
//!
//! Invariants: a script never ends at a prompt, it goes on asking; a script replaces the one before it, so asking for days
//! nests nothing; nothing from outside gets into a script unless it is on a list of harmless characters.

use crate::decision::{BootDecision, Platform};

/// The script DHCP points iPXE to.
pub const START_SCRIPT: &str = "start.ipxe";
/// The script that depends on the machine.
pub const MENU_SCRIPT: &str = "menu.ipxe";

/// x86's `COMMAND_LINE_SIZE`, less what we add.
const GREATEST_CMDLINE: usize = 1900;
const GREATEST_WAIT_SECONDS: u32 = 3600;
const RETRY_SECONDS: u32 = 5;

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidCmdline {
    #[error("the kernel command line is longer than {GREATEST_CMDLINE} characters")]
    TooLong,
    #[error("the kernel command line has a character that iPXE or the kernel cannot take: {0:?}")]
    Character(char),
    #[error("the kernel command line has {0:?}, which iPXE would act upon")]
    Meaning(&'static str),
}

/// The first script: sends the machine, with what it knows about itself, to the second.
///
/// `netX` is the interface iPXE booted from; `net0` would be the first of the machine.
pub fn ask_script(base_url: &str) -> String {
    format!("#!ipxe\n{}", ask(base_url, "asking what to do"))
}

/// The script for one machine.
pub fn script_for(
    decision: &BootDecision,
    platform: Platform,
    base_url: &str,
) -> Result<String, InvalidCmdline> {
    match decision {
        BootDecision::Agent { cmdline } => install_script(base_url, cmdline),
        BootDecision::LocalDisk => Ok(local_disk_script(platform)),
        BootDecision::Wait { seconds } => Ok(wait_script(base_url, *seconds, "nothing to do yet")),
    }
}

/// Loads kernel and initramfs and starts them; when that fails, says so and asks again.
///
/// `initrd=initrd` names the image for kernels that get it from UEFI by name.
pub fn install_script(base_url: &str, cmdline: &str) -> Result<String, InvalidCmdline> {
    check_cmdline(cmdline)?;
    let ask = ask(base_url, "asking again");
    Ok(format!(
        "#!ipxe\n\
         echo Cairn: loading the installer\n\
         imgfree\n\
         kernel --name vmlinuz {base_url}/vmlinuz initrd=initrd {cmdline} || goto failed\n\
         initrd --name initrd {base_url}/initrd || goto failed\n\
         boot || goto failed\n\
         :failed\n\
         echo Cairn: the installer could not be loaded or started (${{errno}})\n\
         imgfree\n\
         sleep {RETRY_SECONDS}\n\
         {ask}"
    ))
}

/// Goes on to the machine's own disk. BIOS firmware often cannot return to its boot order, so the first disk is started
/// directly. UEFI tries the next boot option when ours returns an error; without one it opens its setup instead.
pub fn local_disk_script(platform: Platform) -> String {
    match platform {
        Platform::Bios => "#!ipxe\n\
                           echo Cairn: starting from the local disk\n\
                           sanboot --no-describe --drive 0x80\n"
            .to_owned(),
        Platform::Uefi => "#!ipxe\n\
                           echo Cairn: starting from the local disk\n\
                           exit 1\n"
            .to_owned(),
    }
}

/// Waits and asks again. `why` is a text of ours.
pub(crate) fn wait_script(base_url: &str, seconds: u32, why: &str) -> String {
    let seconds = seconds.clamp(1, GREATEST_WAIT_SECONDS);
    let ask = ask(base_url, "asking again");
    format!("#!ipxe\necho Cairn: {why}; asking again in {seconds} seconds\nsleep {seconds}\n{ask}")
}

/// The part of every script that asks, and asks until it is answered.
fn ask(base_url: &str, why: &str) -> String {
    let query = [
        ("mac", "${netX/mac}"),
        ("uuid", "${uuid}"),
        ("serial", "${serial:uristring}"),
        ("manufacturer", "${manufacturer:uristring}"),
        ("product", "${product:uristring}"),
        ("arch", "${buildarch}"),
        ("platform", "${platform}"),
    ];
    let query: Vec<String> = query.iter().map(|(name, value)| format!("{name}={value}")).collect();
    format!(
        ":ask\n\
         echo Cairn: {why}\n\
         chain --replace --autofree {base_url}/{MENU_SCRIPT}?{query} ||\n\
         echo Cairn: no answer (${{errno}}); trying again in {RETRY_SECONDS} seconds\n\
         sleep {RETRY_SECONDS}\n\
         goto ask\n",
        query = query.join("&")
    )
}

/// iPXE expands `${…}`, splits at spaces and acts on `&&`, `||` and `;` as words; a newline would begin a command.
fn check_cmdline(cmdline: &str) -> Result<(), InvalidCmdline> {
    if cmdline.len() > GREATEST_CMDLINE {
        return Err(InvalidCmdline::TooLong);
    }
    if let Some(character) = cmdline.chars().find(|c| !c.is_ascii_graphic() && *c != ' ') {
        return Err(InvalidCmdline::Character(character));
    }
    let as_word = |word: &&str| cmdline.split(' ').any(|part| part == *word);
    match ["${", "\\"].into_iter().find(|text| cmdline.contains(text)) {
        Some(text) => Err(InvalidCmdline::Meaning(text)),
        None => ["&&", "||", ";"]
            .into_iter()
            .find(as_word)
            .map_or(Ok(()), |word| Err(InvalidCmdline::Meaning(word))),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BASE: &str = "http://10.77.0.2:8441/boot";

    #[test]
    fn the_first_script_asks_until_it_is_answered() {
        assert_eq!(
            ask_script(BASE),
            "#!ipxe\n\
             :ask\n\
             echo Cairn: asking what to do\n\
             chain --replace --autofree http://10.77.0.2:8441/boot/menu.ipxe?mac=${netX/mac}&uuid=${uuid}\
             &serial=${serial:uristring}&manufacturer=${manufacturer:uristring}&product=${product:uristring}\
             &arch=${buildarch}&platform=${platform} ||\n\
             echo Cairn: no answer (${errno}); trying again in 5 seconds\n\
             sleep 5\n\
             goto ask\n"
        );
    }

    #[test]
    fn the_install_script_boots_kernel_and_initramfs() {
        let script =
            install_script(BASE, "console=ttyS0 cairn.server=https://10.77.0.2:8440").unwrap();
        assert!(script.starts_with("#!ipxe\n"));
        assert!(script.contains(
            "kernel --name vmlinuz http://10.77.0.2:8441/boot/vmlinuz initrd=initrd console=ttyS0 \
             cairn.server=https://10.77.0.2:8440 || goto failed\n"
        ));
        assert!(script.contains("initrd --name initrd http://10.77.0.2:8441/boot/initrd || goto failed\nboot || goto failed\n"));
        assert!(script.ends_with("goto ask\n"), "a failure asks again");
    }

    #[test]
    fn the_local_disk_is_reached_by_what_the_firmware_can() {
        assert!(
            local_disk_script(Platform::Bios).contains("\nsanboot --no-describe --drive 0x80\n")
        );
        assert!(local_disk_script(Platform::Uefi).contains("\nexit 1\n"));
    }

    #[test]
    fn waiting_is_bounded_and_asks_again() {
        let script =
            |seconds| script_for(&BootDecision::Wait { seconds }, Platform::Bios, BASE).unwrap();
        assert!(script(10).contains("\nsleep 10\n:ask\n"));
        assert!(script(0).contains("\nsleep 1\n"));
        assert!(script(u32::MAX).contains("\nsleep 3600\n"));
    }

    #[test]
    fn a_command_line_that_means_something_to_ipxe_is_refused() {
        for (cmdline, error) in [
            ("a\nshell", InvalidCmdline::Character('\n')),
            ("a\tb", InvalidCmdline::Character('\t')),
            ("name=é", InvalidCmdline::Character('é')),
            ("a ${mac}", InvalidCmdline::Meaning("${")),
            ("a || shell", InvalidCmdline::Meaning("||")),
            ("a && shell", InvalidCmdline::Meaning("&&")),
            ("a ; shell", InvalidCmdline::Meaning(";")),
            ("a\\", InvalidCmdline::Meaning("\\")),
        ] {
            assert_eq!(install_script(BASE, cmdline), Err(error), "{cmdline:?}");
        }
        assert_eq!(install_script(BASE, &"x".repeat(1901)), Err(InvalidCmdline::TooLong));
        assert!(install_script(BASE, "a=b||c;d&&e $x").is_ok(), "inside a word they are text");
    }

    proptest! {
        #[test]
        fn no_command_line_adds_a_line(cmdline in ".{0,80}") {
            let lines = install_script(BASE, "quiet").unwrap().lines().count();
            if let Ok(script) = install_script(BASE, &cmdline) {
                prop_assert_eq!(script.lines().count(), lines);
            }
        }
    }
}

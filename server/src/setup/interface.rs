//! Which interface a new server answers on.

use anyhow::{Result, bail};
use cairn_array::tls::InterfaceAddress;

/// The kernel's routes, for the network namespace of this process.
pub(super) const ROUTES: &str = "/proc/self/net/route";

/// The interfaces of the default routes in the text of [`ROUTES`], each once.
pub(super) fn of_default_routes(routes: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in routes.lines().skip(1) {
        let fields: Vec<_> = line.split_ascii_whitespace().collect();
        // Interface, destination, gateway, flags, three counters, mask.
        if let [interface, "00000000", _, _, _, _, _, "00000000", ..] = fields[..]
            && !found.iter().any(|known| known == interface)
        {
            found.push(interface.to_owned());
        }
    }
    found
}

/// The interface that was asked for, else the only one with a default route.
///
/// # Errors
/// When it is not there, or the choice is not clear; each error lists the interfaces.
pub(super) fn choose(
    wanted: Option<&str>,
    there: &[InterfaceAddress],
    routed: &[String],
) -> Result<String> {
    let list = || match there {
        [] => "no interface has an IPv4 address".to_owned(),
        there => {
            let list = there.iter().map(|it| format!("{} ({})", it.interface, it.address));
            format!("there are {}", list.collect::<Vec<_>>().join(", "))
        }
    };
    if let Some(wanted) = wanted {
        if !there.iter().any(|it| it.interface == wanted) {
            bail!("there is no interface {wanted} with an IPv4 address: {}", list());
        }
        return Ok(wanted.to_owned());
    }
    match routed {
        [only] if there.iter().any(|it| it.interface == *only) => Ok(only.clone()),
        [only] => bail!(
            "the default route is by {only}, which has no IPv4 address: name another with --interface; {}",
            list()
        ),
        [] => bail!("no interface has a default route: name one with --interface; {}", list()),
        several => bail!(
            "{} have a default route: name one with --interface; {}",
            several.join(" and "),
            list()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str =
        "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n";

    #[test]
    fn default_routes_are_those_to_everywhere() {
        let text = format!(
            "{HEAD}eth0\t00000000\t0100000A\t0003\t0\t0\t100\t00000000\t0\t0\t0\n\
             eth0\t00000000\t0200000A\t0003\t0\t0\t200\t00000000\t0\t0\t0\n\
             eth0\t0000000A\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0\n\
             tun0\t00000000\t00000000\t0001\t0\t0\t0\t00000080\t0\t0\t0\n\
             wlan0\t00000000\t0100A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0\n"
        );
        assert_eq!(of_default_routes(&text), ["eth0", "wlan0"]);
        assert!(of_default_routes(HEAD).is_empty() && of_default_routes("").is_empty());
    }

    #[test]
    fn an_interface_is_asked_for_or_the_only_clear_choice() {
        let at = |interface: &str, address: [u8; 4]| InterfaceAddress {
            interface: interface.to_owned(),
            address: address.into(),
        };
        let there = [at("eth0", [10, 0, 0, 2]), at("wlan0", [192, 168, 0, 7])];
        let routes = |names: &[&str]| names.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>();
        assert_eq!(choose(None, &there, &routes(&["eth0"])).unwrap(), "eth0");
        assert_eq!(choose(Some("wlan0"), &there, &routes(&["eth0"])).unwrap(), "wlan0");
        let listed = "eth0 (10.0.0.2), wlan0 (192.168.0.7)";
        for (wanted, routed, why) in [
            (Some("eth9"), &["eth0"][..], "there is no interface eth9"),
            (None, &[], "no interface has a default route"),
            (None, &["eth0", "wlan0"], "eth0 and wlan0 have a default route"),
            (None, &["tun0"], "the default route is by tun0"),
        ] {
            let refused = choose(wanted, &there, &routes(routed)).unwrap_err().to_string();
            assert!(refused.contains(why) && refused.contains(listed), "{refused}");
        }
        let refused = choose(None, &[], &[]).unwrap_err().to_string();
        assert!(refused.contains("no interface has an IPv4 address"), "{refused}");
    }
}

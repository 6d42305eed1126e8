//! The address of the client: `ip` of an event.
//!
//! `X-Forwarded-For` is what anybody writes into it, except for the entries that our own proxies have appended on the
//! right. Proxies are taken to have private addresses, as in a cluster or behind a cloud's load balancer: seen from the
//! connection, the first address on the way back that is not private is the client. A client that connects directly
//! cannot pretend to be another one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The client's address. `peer` is the other end of the connection, `forwarded` the values of `X-Forwarded-For` in order.
pub fn of<'a>(peer: IpAddr, forwarded: impl Iterator<Item = &'a str>) -> IpAddr {
    let peer = peer.to_canonical();
    if !is_internal(peer) {
        return peer;
    }
    let hops: Vec<IpAddr> = forwarded.flat_map(|value| value.split(',')).filter_map(hop).collect();
    hops.iter().rev().copied().find(|hop| !is_internal(*hop)).or(hops.first().copied()).unwrap_or(peer)
}

/// One entry: an address, in brackets or with a port or not.
fn hop(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let bare = match text.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None if text.matches(':').count() == 1 => text.split(':').next().unwrap_or_default(),
        None => text,
    };
    bare.parse::<IpAddr>().ok().map(|address| address.to_canonical())
}

fn is_internal(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let shared = Ipv4Addr::new(100, 64, 0, 0).to_bits();
            address.is_private()
                || address.is_loopback()
                || address.is_link_local()
                || address.is_unspecified()
                || address.to_bits() & 0xFFC0_0000 == shared
        }
        IpAddr::V6(address) => {
            address.is_loopback()
                || address == Ipv6Addr::UNSPECIFIED
                || address.is_unique_local()
                || address.is_unicast_link_local()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_client_is_the_first_public_address_on_the_way_back() {
        let cases: [(&str, &[&str], &str); 11] = [
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &["203.0.113.9"], "203.0.113.9"),
            ("10.0.0.1", &["203.0.113.9, 10.0.0.7"], "203.0.113.9"),
            ("10.0.0.1", &["1.1.1.1, 203.0.113.9, 10.0.0.7"], "203.0.113.9"),
            ("10.0.0.1", &["1.1.1.1", "203.0.113.9"], "203.0.113.9"),
            ("10.0.0.1", &["192.168.1.2, 10.0.0.7"], "192.168.1.2"),
            ("10.0.0.1", &["unknown, nonsense"], "10.0.0.1"),
            ("10.0.0.1", &["203.0.113.9:4711"], "203.0.113.9"),
            ("::ffff:10.0.0.1", &["[2001:db8::1]:80"], "2001:db8::1"),
            ("203.0.113.5", &["1.1.1.1"], "203.0.113.5"),
            ("::ffff:203.0.113.5", &["1.1.1.1"], "203.0.113.5"),
        ];
        for (peer, forwarded, expected) in cases {
            let address = of(peer.parse().unwrap(), forwarded.iter().copied());
            assert_eq!(address.to_string(), expected, "{peer} {forwarded:?}");
        }
    }
}

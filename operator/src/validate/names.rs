//! Names that become other names, and addresses.

use std::net::IpAddr;

use super::Problem;

/// `<pipeline>-consumer-main` and `<pipeline>-capture` are label values and a Service's name: 63 characters.
const MAX_PIPELINE_NAME: usize = 45;
/// A workload's name is that of its PodDisruptionBudget and the value of a label as well.
const MAX_WORKLOAD_NAME: usize = 63;

fn field(field: &str, message: String) -> Option<Problem> {
    Some(Problem::Field { field: field.to_owned(), message })
}

fn is_dns_label(name: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    !name.is_empty() && name.chars().all(inner) && !name.starts_with('-') && !name.ends_with('-')
}

/// Name of the pipeline: it begins the name of the Service, which starts with a letter and has no dot.
pub fn pipeline(name: &str) -> Option<Problem> {
    let why = if name.len() > MAX_PIPELINE_NAME {
        "is longer than 45 characters, and the names of its children are made from it"
    } else if !is_dns_label(name) || !name.starts_with(|c: char| c.is_ascii_lowercase()) {
        "cannot begin the name of a Service: it must start with a letter and have letters, digits and dashes only"
    } else {
        return None;
    };
    Some(Problem::Name { name: name.to_owned(), why })
}

/// Name of an export: it ends the name of a workload and of a consumer group.
pub fn export(path: &str, pipeline: &str, name: &str) -> Option<Problem> {
    if !is_dns_label(name) {
        return field(
            path,
            format!(
                "the name {name:?} must have lower-case letters, digits and dashes only, as \"warehouse\""
            ),
        );
    }
    let workload = pipeline.len() + "-export-".len() + name.len();
    if workload > MAX_WORKLOAD_NAME {
        return field(
            path,
            format!(
                "its workload's name would have {workload} characters; shorten the name to fit {MAX_WORKLOAD_NAME}"
            ),
        );
    }
    None
}

/// Tag of an image.
pub fn image_tag(path: &str, tag: &str) -> Option<Problem> {
    let first = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let rest = |c: char| first(c) || c == '.' || c == '-';
    if tag.starts_with(first) && tag.chars().all(rest) && tag.len() <= 128 {
        return None;
    }
    field(path, format!("{tag:?} is not an image tag; write for example 0.1.0"))
}

/// A token as clients send it.
pub fn token(token: &str) -> Result<(), String> {
    if !token.is_empty() && token.len() <= 64 && token.chars().all(|c| c.is_ascii_graphic()) {
        return Ok(());
    }
    Err("is not a token: 1 to 64 printable ASCII characters without spaces".to_owned())
}

/// `host:port`, separated by commas.
pub fn bootstrap_servers(path: &str, servers: &str) -> Option<Problem> {
    let good = |server: &str| {
        server.trim().rsplit_once(':').is_some_and(|(host, port)| {
            !host.is_empty()
                && !host.contains(char::is_whitespace)
                && !host.contains('/')
                && port.parse::<u16>().is_ok_and(|port| port != 0)
        })
    };
    if servers.split(',').all(good) {
        return None;
    }
    field(path, format!("{servers:?} is not host:port; write for example kafka.streaming:9092"))
}

/// Prefix of topics: Kafka's own characters, and room for the longest stage in its 249.
pub fn topic_prefix(path: &str, prefix: &str) -> Option<Problem> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if prefix.chars().all(good) && prefix.len() <= 249 - "dead-letter".len() {
        return None;
    }
    field(
        path,
        format!(
            "{prefix:?} cannot begin a topic's name: letters, digits, '.', '_' and '-', at most 238 of them"
        ),
    )
}

/// An `http` or `https` URL with a host and without credentials, which would end in a ConfigMap.
pub fn url(path: &str, text: &str) -> Option<Problem> {
    let Ok(url) = url::Url::parse(text) else {
        return field(path, format!("{text:?} is not a URL; write for example https://host:8443"));
    };
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
        return field(path, format!("{text:?} must begin with http:// or https:// and name a host"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return field(path, "a user or password in a URL is readable by everybody; take it out".to_owned());
    }
    None
}

/// A name in ClickHouse that needs no thought about quoting.
pub fn identifier(path: &str, name: &str) -> Option<Problem> {
    let first = |c: char| c.is_ascii_alphabetic() || c == '_';
    if name.starts_with(first) && name.chars().all(|c| first(c) || c.is_ascii_digit()) && name.len() <= 128 {
        return None;
    }
    field(path, format!("{name:?} must be letters, digits and underscores, not starting with a digit"))
}

/// A network, `10.0.0.0/8`.
pub fn network(path: &str, text: &str) -> Option<Problem> {
    let good = text.split_once('/').is_some_and(|(address, bits)| {
        match (address.parse::<IpAddr>(), bits.parse::<u8>()) {
            (Ok(IpAddr::V4(_)), Ok(bits)) => bits <= 32,
            (Ok(IpAddr::V6(_)), Ok(bits)) => bits <= 128,
            _ => false,
        }
    });
    if good { None } else { field(path, format!("{text:?} is not a network; write for example 10.0.0.0/8")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_cannot_begin_a_service_are_refused() {
        for good in ["web", "w", "web-1"] {
            assert_eq!(pipeline(good), None, "{good}");
        }
        for bad in ["", "1web", "web.shop", "Web", "web-", &"a".repeat(46)] {
            assert!(pipeline(bad).is_some(), "{bad} was taken");
        }
    }

    #[test]
    fn addresses_are_checked_with_their_port() {
        for good in ["kafka:9092", "a.b:1,c.d:65535", "[::1]:9092"] {
            assert_eq!(bootstrap_servers("f", good), None, "{good}");
        }
        for bad in ["", "kafka", "kafka:0", "kafka:9092,", "http://kafka:9092", "kafka:99999", ":9092"] {
            assert!(bootstrap_servers("f", bad).is_some(), "{bad} was taken");
        }
    }

    #[test]
    fn credentials_do_not_come_in_by_the_url() {
        assert_eq!(url("f", "https://ch.warehouse:8443"), None);
        for bad in ["ch:8123", "ftp://host", "https://user:pass@host", "https://user@host"] {
            assert!(url("f", bad).is_some(), "{bad} was taken");
        }
    }

    #[test]
    fn networks_and_identifiers_and_tags() {
        assert_eq!(network("f", "10.0.0.0/8"), None);
        assert_eq!(network("f", "fd00::/8"), None);
        for bad in ["10.0.0.0", "10.0.0.0/33", "x/8", "::/129"] {
            assert!(network("f", bad).is_some(), "{bad} was taken");
        }
        assert_eq!(identifier("f", "analytics_2"), None);
        for bad in ["", "2a", "a-b", "a`b", "a.b"] {
            assert!(identifier("f", bad).is_some(), "{bad} was taken");
        }
        assert_eq!(image_tag("f", "0.1.0-rc.1"), None);
        for bad in ["", ".1", "a b", "a:b", "a@sha256"] {
            assert!(image_tag("f", bad).is_some(), "{bad} was taken");
        }
    }
}

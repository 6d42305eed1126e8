//! Why Kafka or ClickHouse did not do what was asked: one word for conditions, and words for people.

use std::fmt;

/// What kind of thing is in the way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cause {
    /// Nobody answered, or not in time, or with something that is none of the below.
    #[default]
    Unreachable,
    /// The name of the host is unknown.
    HostNotResolved,
    /// It was not believed who we are.
    AuthenticationFailed,
    /// We are believed, and may not do this.
    NotAuthorized,
    /// The server's certificate is not from an authority that the spec trusts.
    CertificateNotTrusted,
    /// The server's certificate has expired, or does not hold yet.
    CertificateExpired,
    /// The server's certificate is for another name.
    CertificateNameMismatch,
    /// The server wants to know who we are, and the spec does not say it.
    AuthenticationExpected,
    /// The server wants a certificate of us, or another one.
    ClientCertificateRefused,
    /// The server speaks TLS, and the spec says that it does not.
    TlsExpected,
    /// The spec says that the server speaks TLS, and it does not.
    TlsNotExpected,
}

impl Cause {
    /// One word in PascalCase, stable.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Unreachable => "Unreachable",
            Self::HostNotResolved => "HostNotResolved",
            Self::AuthenticationFailed => "AuthenticationFailed",
            Self::NotAuthorized => "NotAuthorized",
            Self::CertificateNotTrusted => "CertificateNotTrusted",
            Self::CertificateExpired => "CertificateExpired",
            Self::CertificateNameMismatch => "CertificateNameMismatch",
            Self::AuthenticationExpected => "AuthenticationExpected",
            Self::ClientCertificateRefused => "ClientCertificateRefused",
            Self::TlsExpected => "TlsExpected",
            Self::TlsNotExpected => "TlsNotExpected",
        }
    }

    /// Whether only a person can take it away. Who does not answer may come back by itself.
    pub fn needs_a_person(self) -> bool {
        !matches!(self, Self::Unreachable | Self::HostNotResolved)
    }
}

/// Why something was not done. The words stay the same while nothing changes: neither times nor counts are in them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Failure {
    /// The kind.
    pub cause: Cause,
    /// For people: what was asked of whom, what is in the way, and what to do.
    pub why: String,
}

impl Failure {
    /// A failure of this kind.
    pub fn new(cause: Cause, why: impl Into<String>) -> Self {
        Self { cause, why: why.into() }
    }

    /// Several as one: the words of all, and the first kind that says more than that nobody answered.
    pub fn all(failures: &[Self]) -> Self {
        let cause = failures.iter().map(|failure| failure.cause).find(|cause| *cause != Cause::Unreachable);
        let mut words: Vec<&str> = Vec::new();
        for failure in failures {
            if !words.contains(&failure.why.as_str()) {
                words.push(&failure.why);
            }
        }
        Self { cause: cause.unwrap_or_default(), why: words.join("; ") }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

impl From<String> for Failure {
    fn from(why: String) -> Self {
        Self::new(Cause::Unreachable, why)
    }
}

impl From<&str> for Failure {
    fn from(why: &str) -> Self {
        why.to_owned().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_several_failures_the_telling_one_gives_the_reason_and_each_is_told_once() {
        let silent = Failure::from("ch-1 does not answer");
        let refused = Failure::new(Cause::NotAuthorized, "ch-2 refuses");
        assert_eq!(
            Failure::all(&[silent.clone(), refused, silent]),
            Failure::new(Cause::NotAuthorized, "ch-1 does not answer; ch-2 refuses")
        );
    }
}

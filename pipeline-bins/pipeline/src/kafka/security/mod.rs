//! Who we are to Kafka and whom we trust, in memory: what files or Secrets said, checked.
//!
//! No type here shows a secret; no error repeats what it complains about.

mod files;
mod token;

use std::fmt;

use rdkafka::{ClientConfig, client::OAuthToken};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

pub(super) use files::load_auth;
pub use files::{CredentialError, load, read};
pub use token::Token;

/// How a connection is secured.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Security {
    /// Encryption; `None`: in the clear.
    pub tls: Option<Tls>,
    /// Who we are; `None`: nobody in particular.
    pub auth: Option<Auth>,
}

/// An encrypted connection; the server's certificate and its name are always checked.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Tls {
    /// The public authorities are trusted, as this program knows them: what the system has does not matter.
    PublicAuthorities,
    /// These are trusted and no others.
    Authorities {
        /// Their certificates.
        pem: String,
    },
}

/// Who we are.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Auth {
    /// By SASL SCRAM-SHA-512.
    ScramSha512 {
        /// The user's name.
        username: String,
        /// The password.
        password: Secret,
    },
    /// By a certificate in the handshake of TLS.
    Mtls {
        /// Our certificate, followed by those between it and the authority.
        certificate_pem: String,
        /// Its key.
        private_key_pem: Secret,
    },
    /// By SASL OAUTHBEARER.
    OauthBearer {
        /// The token.
        token: Token,
    },
}

/// A text that is not shown.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Secret(String);

impl Secret {
    /// Hides a text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text, for the one who sends it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

impl Tls {
    /// Trust in the authorities of a PEM file. The reason why it cannot be used repeats nothing of it.
    pub fn from_pem(content: &[u8]) -> Result<Self, String> {
        let pem = certificates(content)?;
        Ok(Self::Authorities { pem })
    }

    fn pem(&self) -> String {
        match self {
            Self::Authorities { pem } => pem.clone(),
            Self::PublicAuthorities => public_authorities(),
        }
    }
}

impl Auth {
    /// By user and password. Line breaks at the end, which editors leave, do not count.
    pub fn scram_sha_512(username: &[u8], password: &[u8]) -> Result<Self, String> {
        let username = line(username).map_err(|reason| format!("the user's name {reason}"))?;
        let password = line(password).map_err(|reason| format!("the password {reason}"))?;
        Ok(Self::ScramSha512 { username, password: Secret(password) })
    }

    /// By a certificate and its key, both PEM.
    pub fn mtls(certificate: &[u8], private_key: &[u8]) -> Result<Self, String> {
        let certificate_pem = certificates(certificate)?;
        let private_key_pem = Secret(self::private_key(private_key)?);
        Ok(Self::Mtls { certificate_pem, private_key_pem })
    }

    /// By a JSON Web Token. Its signature is Kafka's to check.
    pub fn oauth_bearer(token: &[u8]) -> Result<Self, String> {
        let token = line(token).map_err(|reason| format!("the token {reason}"))?;
        Ok(Self::OauthBearer { token: Token::parse(&token)? })
    }

    /// The token as the `rdkafka` crate takes it; `None` with another way to authenticate.
    pub fn oauth_token(&self) -> Option<OAuthToken> {
        match self {
            Self::OauthBearer { token } => Some(token.to_native()),
            Self::ScramSha512 { .. } | Self::Mtls { .. } => None,
        }
    }
}

impl Security {
    /// `security.protocol`.
    pub fn protocol(&self) -> &'static str {
        let sasl = matches!(self.auth, Some(Auth::ScramSha512 { .. } | Auth::OauthBearer { .. }));
        match (&self.tls, sasl) {
            (None, false) => "PLAINTEXT",
            (None, true) => "SASL_PLAINTEXT",
            (Some(_), false) => "SSL",
            (Some(_), true) => "SASL_SSL",
        }
    }

    /// Writes it into the configuration of a client. A token is not part of a configuration: the client asks for it by
    /// `ClientContext::generate_oauth_token`, or it is set on the client.
    pub fn apply(&self, config: &mut ClientConfig) {
        config.set("security.protocol", self.protocol());
        if let Some(tls) = &self.tls {
            config
                .set("ssl.ca.pem", tls.pem())
                .set("ssl.endpoint.identification.algorithm", "https")
                .set("enable.ssl.certificate.verification", "true");
        }
        match &self.auth {
            None => {}
            Some(Auth::ScramSha512 { username, password }) => {
                config
                    .set("sasl.mechanisms", "SCRAM-SHA-512")
                    .set("sasl.username", username)
                    .set("sasl.password", password.expose());
            }
            Some(Auth::Mtls { certificate_pem, private_key_pem }) => {
                config
                    .set("ssl.certificate.pem", certificate_pem)
                    .set("ssl.key.pem", private_key_pem.expose());
            }
            Some(Auth::OauthBearer { .. }) => {
                config.set("sasl.mechanisms", "OAUTHBEARER");
            }
        }
    }
}

/// The text of a file with one line, without the line break at its end. The reason why not repeats nothing of it.
pub fn line(content: &[u8]) -> Result<String, String> {
    let text = std::str::from_utf8(content).map_err(|_| "is not UTF-8".to_owned())?;
    let text = text.trim_end_matches(['\n', '\r']);
    match text {
        "" => Err("is empty".to_owned()),
        text if text.contains(['\n', '\r', '\0']) => Err("has more than one line".to_owned()),
        text => Ok(text.to_owned()),
    }
}

/// A PEM text with at least one certificate.
fn certificates(content: &[u8]) -> Result<String, String> {
    let text = pem_text(content)?;
    let mut count = 0;
    for certificate in CertificateDer::pem_slice_iter(content) {
        certificate.map_err(|_| "has a certificate that is not PEM".to_owned())?;
        count += 1;
    }
    match count {
        0 => Err("has no certificate; expected PEM, -----BEGIN CERTIFICATE-----".to_owned()),
        _ => Ok(text),
    }
}

fn private_key(content: &[u8]) -> Result<String, String> {
    let text = pem_text(content)?;
    if text.contains("ENCRYPTED") {
        return Err("has a private key with a passphrase; write one without".to_owned());
    }
    PrivateKeyDer::from_pem_slice(content)
        .map_err(|_| "has no private key; expected PEM, -----BEGIN PRIVATE KEY-----".to_owned())?;
    Ok(text)
}

fn pem_text(content: &[u8]) -> Result<String, String> {
    match std::str::from_utf8(content) {
        Err(_) => Err("is not text; expected PEM".to_owned()),
        Ok(text) if text.trim().is_empty() => Err("is empty; expected PEM".to_owned()),
        Ok(text) if text.contains('\0') => Err("is not text; expected PEM".to_owned()),
        Ok(text) => Ok(text.to_owned()),
    }
}

/// The certificates of the public authorities, as PEM: librdkafka takes no other form from memory.
fn public_authorities() -> String {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let mut pem = String::with_capacity(256 << 10);
    for certificate in webpki_root_certs::TLS_SERVER_ROOT_CERTS {
        pem.push_str("-----BEGIN CERTIFICATE-----\n");
        pem.push_str(&STANDARD.encode(certificate));
        pem.push_str("\n-----END CERTIFICATE-----\n");
    }
    pem
}

#[cfg(test)]
mod tests;

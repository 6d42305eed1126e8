use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{KafkaConnection, LiveFile};

/// An encrypted connection, to a server whose certificate and name are checked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TlsConfig {
    /// PEM file with the certificates of the authorities that are trusted, read at the start. Absent: the public ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
}

/// Who we are to Kafka. What is secret stays in files; the configuration only says where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum KafkaAuth {
    /// User and password, by SASL SCRAM-SHA-512.
    ScramSha512(PasswordFiles),
    /// A certificate of our own, in the handshake of TLS.
    Mtls(CertificateFiles),
    /// A bearer token, by SASL OAUTHBEARER.
    OauthBearer(TokenFile),
}

/// A user and a password. Trailing line breaks do not count.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PasswordFiles {
    /// File with the user's name, reloaded live.
    pub username_file: LiveFile,
    /// File with the password, reloaded live.
    pub password_file: LiveFile,
}

/// A certificate and its key, both PEM, read at the start: a change needs a new process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CertificateFiles {
    /// File with our certificate, followed by those between it and the authority.
    pub certificate_file: PathBuf,
    /// File with its private key, without a passphrase.
    pub private_key_file: PathBuf,
}

/// A token that somebody renews in time, such as the kubelet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TokenFile {
    /// File with a JSON Web Token, reloaded live.
    pub token_file: LiveFile,
}

impl KafkaConnection {
    /// Without encryption, as nobody in particular.
    pub fn plaintext(bootstrap_servers: impl Into<String>) -> Self {
        Self { bootstrap_servers: bootstrap_servers.into(), tls: None, auth: None }
    }

    /// What parsing cannot know. The error names the field and says what to write instead.
    pub fn check(&self) -> Result<(), String> {
        let field = match (&self.tls, &self.auth) {
            (None, Some(KafkaAuth::Mtls(_))) => "mtls",
            (None, Some(KafkaAuth::OauthBearer(_))) => "oauthBearer",
            _ => return Ok(()),
        };
        Err(format!("kafka.auth.{field}: needs an encrypted connection; write kafka.tls as well"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(yaml: &str) -> Result<KafkaConnection, String> {
        serde_yaml_ng::from_str(yaml).map_err(|error| error.to_string())
    }

    #[test]
    fn a_connection_of_before_is_one_without_encryption() {
        assert_eq!(parse("bootstrapServers: k:9092"), Ok(KafkaConnection::plaintext("k:9092")));
        let text = serde_yaml_ng::to_string(&KafkaConnection::plaintext("k:9092")).unwrap();
        assert_eq!(text, "bootstrapServers: k:9092\n");
    }

    #[test]
    fn every_way_to_authenticate_is_read_and_written_as_a_map() {
        for (text, tls, auth) in [
            ("bootstrapServers: k:1\ntls: {}\n", Some(TlsConfig { ca_file: None }), None),
            (
                "bootstrapServers: k:1\nauth:\n  scramSha512:\n    usernameFile: /a/u\n    passwordFile: /a/p\n",
                None,
                Some(KafkaAuth::ScramSha512(PasswordFiles {
                    username_file: "/a/u".into(),
                    password_file: "/a/p".into(),
                })),
            ),
            (
                "bootstrapServers: k:1\ntls:\n  caFile: /ca\nauth:\n  mtls:\n    certificateFile: /c\n    \
                 privateKeyFile: /k\n",
                Some(TlsConfig { ca_file: Some("/ca".into()) }),
                Some(KafkaAuth::Mtls(CertificateFiles {
                    certificate_file: "/c".into(),
                    private_key_file: "/k".into(),
                })),
            ),
            (
                "bootstrapServers: k:1\ntls: {}\nauth:\n  oauthBearer:\n    tokenFile: /t\n",
                Some(TlsConfig { ca_file: None }),
                Some(KafkaAuth::OauthBearer(TokenFile { token_file: "/t".into() })),
            ),
        ] {
            let connection = KafkaConnection { bootstrap_servers: "k:1".into(), tls, auth };
            assert_eq!(parse(text), Ok(connection.clone()));
            assert_eq!(serde_yaml_ng::to_string(&connection).unwrap(), text);
            let json = serde_json::to_string(&connection).unwrap();
            assert_eq!(parse(&json), Ok(connection.clone()), "{json}");
            assert_eq!(connection.check(), Ok(()));
        }
    }

    #[test]
    fn what_is_not_known_is_refused() {
        for text in [
            "bootstrapServers: k:1\npassword: x",
            "bootstrapServers: k:1\ntls: {ca: x}",
            "bootstrapServers: k:1\nauth: {plain: {}}",
            "bootstrapServers: k:1\nauth: {scramSha512: {usernameFile: u}}",
            "bootstrapServers: k:1\nauth: {scramSha512: {usernameFile: u, passwordFile: p, password: x}}",
            "bootstrapServers: k:1\nauth: {mtls: {certificateFile: u, privateKeyFile: p, key: x}}",
            "bootstrapServers: k:1\nauth: {oauthBearer: {tokenFile: u, token: x}}",
            "bootstrapServers: k:1\nauth: {oauthBearer: {tokenFile: u}, mtls: {certificateFile: u, privateKeyFile: p}}",
        ] {
            assert!(parse(text).is_err(), "{text} was taken");
        }
    }

    #[test]
    fn what_would_show_a_token_to_everybody_is_refused() {
        for (auth, field) in [
            ("oauthBearer: {tokenFile: t}", "kafka.auth.oauthBearer"),
            ("mtls: {certificateFile: c, privateKeyFile: k}", "kafka.auth.mtls"),
        ] {
            let connection = parse(&format!("bootstrapServers: k:1\nauth: {{{auth}}}")).unwrap();
            let reason = connection.check().unwrap_err();
            assert!(reason.contains(field) && reason.contains("kafka.tls"), "{reason}");
        }
    }
}

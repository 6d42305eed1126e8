//! Certificates and keys as a real cluster has them: one authority per trust domain, a client certificate per component.

use std::path::Path;

use anyhow::{Context, Result};
use base64::Engine;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use time::{Duration, OffsetDateTime};

use crate::layout::{API_SERVICE_IP, Layout, NODE, NODE_IP};

/// Changes when the certificates to be made do: an older set is then made anew.
const EDITION: &str = "1";
/// The same for the certificates of Kafka and ClickHouse.
const SERVICES_EDITION: &str = "1";
/// Signs the certificates of Kafka and ClickHouse and of their clients. The cluster's own components do not trust it.
const SERVICES_AUTHORITY: &str = "services-ca";
const VALID_DAYS: i64 = 3650;

/// One certificate to be made.
struct Wanted {
    file: &'static str,
    authority: &'static str,
    common_name: &'static str,
    /// Kubernetes reads groups from here.
    organization: Option<&'static str>,
    /// Names and addresses of a server; empty for a client.
    names: Vec<String>,
}

fn wanted() -> Vec<Wanted> {
    let client = |file, common_name, organization| Wanted {
        file,
        authority: "ca",
        common_name,
        organization,
        names: Vec::new(),
    };
    let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect();
    vec![
        Wanted {
            file: "apiserver",
            authority: "ca",
            common_name: "kube-apiserver",
            organization: None,
            names: names(&[
                "kubernetes",
                "kubernetes.default",
                "kubernetes.default.svc",
                "kubernetes.default.svc.cluster.local",
                "localhost",
                "127.0.0.1",
                NODE_IP,
                API_SERVICE_IP,
            ]),
        },
        Wanted {
            file: "kubelet-serving",
            authority: "ca",
            common_name: "system:node:penstock",
            organization: Some("system:nodes"),
            names: names(&[NODE, NODE_IP]),
        },
        Wanted {
            file: "metrics-server",
            authority: "ca",
            common_name: "metrics-server",
            organization: None,
            names: names(&["metrics-server.kube-system.svc", "metrics-server.kube-system.svc.cluster.local"]),
        },
        client("admin", "penstock-admin", Some("system:masters")),
        client("apiserver-kubelet", "kube-apiserver-kubelet-client", Some("system:masters")),
        client("controller-manager", "system:kube-controller-manager", None),
        client("scheduler", "system:kube-scheduler", None),
        client("kube-proxy", "system:kube-proxy", None),
        client("kubelet", "system:node:penstock", Some("system:nodes")),
        Wanted {
            file: "front-proxy",
            authority: "front-proxy-ca",
            common_name: "front-proxy-client",
            organization: None,
            names: Vec::new(),
        },
        Wanted {
            file: "etcd",
            authority: "etcd-ca",
            common_name: "etcd",
            organization: None,
            names: names(&["localhost", "127.0.0.1"]),
        },
        Wanted {
            file: "apiserver-etcd",
            authority: "etcd-ca",
            common_name: "kube-apiserver-etcd-client",
            organization: None,
            names: Vec::new(),
        },
    ]
}

fn params(common_name: &str, organization: Option<&str>, names: Vec<String>) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(names)
        .with_context(|| format!("the names of the certificate {common_name}"))?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    if let Some(organization) = organization {
        params.distinguished_name.push(DnType::OrganizationName, organization);
    }
    let now = OffsetDateTime::now_utc();
    params.not_before = now - Duration::hours(1);
    params.not_after = now + Duration::days(VALID_DAYS);
    Ok(params)
}

/// Makes the whole set unless it is there. A set is replaced as a whole, so that it always fits together.
///
/// # Errors
/// A key cannot be made, or the folder cannot be written.
pub fn ensure(layout: &Layout) -> Result<()> {
    ensure_set(&layout.pki(), EDITION, &["ca", "front-proxy-ca", "etcd-ca"], wanted(), |new| {
        let tokens = KeyPair::generate().context("making the key of service account tokens")?;
        std::fs::write(new.join("service-accounts.key"), tokens.serialize_pem())?;
        std::fs::write(new.join("service-accounts.pub"), tokens.public_key_pem())?;
        Ok(())
    })
}

/// Makes the set of Kafka's and ClickHouse's certificates unless it is there.
///
/// # Errors
/// As [`ensure`].
pub fn ensure_services(layout: &Layout) -> Result<()> {
    let server = |name: &'static str, namespace: &str| Wanted {
        file: name,
        authority: SERVICES_AUTHORITY,
        common_name: name,
        organization: None,
        names: ["", "-2"]
            .iter()
            .flat_map(|number| {
                let service = format!("{name}{number}.{namespace}");
                [service.clone(), format!("{service}.svc"), format!("{service}.svc.cluster.local")]
            })
            .chain(["localhost".to_owned(), "127.0.0.1".to_owned()])
            .collect(),
    };
    ensure_set(
        &layout.services_pki(),
        SERVICES_EDITION,
        &[SERVICES_AUTHORITY],
        vec![server("kafka", "streaming"), server("clickhouse", "warehouse")],
        |_| Ok(()),
    )
}

/// A certificate with its key, both as PEM.
#[derive(Clone)]
pub struct Certificate {
    /// The certificate.
    pub certificate: String,
    /// Its private key, as PKCS#8.
    pub private_key: String,
}

impl std::fmt::Debug for Certificate {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Certificate").finish_non_exhaustive()
    }
}

/// A fresh client certificate that Kafka's TLS listener takes; the broker knows its holder as `User:<common name>`.
///
/// # Errors
/// The platform has made no certificates for its services yet.
pub fn client_certificate(layout: &Layout, common_name: &str) -> Result<Certificate> {
    let file = layout.services_pki().join(format!("{SERVICES_AUTHORITY}.key"));
    let pem = std::fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
    let key = KeyPair::from_pem(&pem).with_context(|| format!("the key in {}", file.display()))?;
    signed(common_name, None, Vec::new(), &Issuer::new(authority(SERVICES_AUTHORITY)?, key))
}

/// A certificate authority that nobody knows, and a certificate that it signed for no server in particular.
///
/// # Errors
/// A key cannot be made.
pub fn stranger(common_name: &str) -> Result<(String, Certificate)> {
    let params = authority("stranger")?;
    let key = KeyPair::generate().context("making a key")?;
    let certificate = params.self_signed(&key).context("signing the stranger's authority")?.pem();
    Ok((certificate, signed(common_name, None, Vec::new(), &Issuer::new(params, key))?))
}

fn authority(name: &str) -> Result<CertificateParams> {
    let mut params = params(&format!("penstock-platform-{name}"), None, Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages =
        vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    Ok(params)
}

fn signed(
    common_name: &str,
    organization: Option<&str>,
    names: Vec<String>,
    issuer: &Issuer<'_, KeyPair>,
) -> Result<Certificate> {
    let serves = !names.is_empty();
    let mut params = params(common_name, organization, names)?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    if serves {
        // etcd's server also presents its certificate as a client, to itself.
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
    }
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate().context("making a key")?;
    let certificate = params.signed_by(&key, issuer).with_context(|| format!("signing {common_name}"))?;
    Ok(Certificate { certificate: certificate.pem(), private_key: key.serialize_pem() })
}

fn ensure_set(
    dir: &Path,
    edition: &str,
    authorities: &[&str],
    wanted: Vec<Wanted>,
    more: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    if std::fs::read_to_string(dir.join("edition")).is_ok_and(|present| present == edition) {
        return Ok(());
    }
    let new = dir.with_extension("new");
    let _ = std::fs::remove_dir_all(&new);
    std::fs::create_dir_all(&new)?;
    restrict(&new)?;

    let mut issuers = Vec::new();
    for name in authorities {
        let params = authority(name)?;
        let key = KeyPair::generate().context("making a key")?;
        let certificate = params.self_signed(&key).with_context(|| format!("signing {name}"))?;
        std::fs::write(new.join(format!("{name}.crt")), certificate.pem())?;
        std::fs::write(new.join(format!("{name}.key")), key.serialize_pem())?;
        issuers.push((*name, Issuer::new(params, key)));
    }
    for wanted in wanted {
        let (_, issuer) = issuers
            .iter()
            .find(|(name, _)| *name == wanted.authority)
            .with_context(|| format!("no authority {}", wanted.authority))?;
        let signed = signed(wanted.common_name, wanted.organization, wanted.names, issuer)?;
        std::fs::write(new.join(format!("{}.crt", wanted.file)), signed.certificate)?;
        std::fs::write(new.join(format!("{}.key", wanted.file)), signed.private_key)?;
    }
    more(&new)?;
    std::fs::write(new.join("edition"), edition)?;
    let _ = std::fs::remove_dir_all(dir);
    std::fs::rename(&new, dir).with_context(|| format!("putting {} in place", dir.display()))
}

/// Keeps a folder from everybody but its owner.
///
/// # Errors
/// There is no such folder, or it is somebody else's.
pub fn restrict(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700))
        .with_context(|| format!("restricting {}", path.display()))
}

/// A file of the set, in base64.
///
/// # Errors
/// The file cannot be read.
pub fn base64_of(layout: &Layout, file: &str) -> Result<String> {
    let path = layout.pki().join(file);
    Ok(base64::engine::general_purpose::STANDARD
        .encode(std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?))
}

/// A kubeconfig that holds its certificates in itself.
///
/// # Errors
/// A certificate cannot be read.
pub fn kubeconfig(layout: &Layout, server: &str, client: &str) -> Result<String> {
    let (ca, certificate, key) = (
        base64_of(layout, "ca.crt")?,
        base64_of(layout, &format!("{client}.crt"))?,
        base64_of(layout, &format!("{client}.key"))?,
    );
    Ok(format!(
        "apiVersion: v1
kind: Config
clusters:
- name: penstock
  cluster:
    server: {server}
    certificate-authority-data: {ca}
users:
- name: {client}
  user:
    client-certificate-data: {certificate}
    client-key-data: {key}
contexts:
- name: penstock
  context: {{cluster: penstock, user: {client}}}
current-context: penstock
"
    ))
}

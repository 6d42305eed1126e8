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
    let dir = layout.pki();
    if std::fs::read_to_string(dir.join("edition")).is_ok_and(|edition| edition == EDITION) {
        return Ok(());
    }
    let new = layout.state.join("pki.new");
    let _ = std::fs::remove_dir_all(&new);
    std::fs::create_dir_all(&new)?;
    restrict(&new)?;

    let mut issuers = Vec::new();
    for authority in ["ca", "front-proxy-ca", "etcd-ca"] {
        let mut params = params(&format!("penstock-platform-{authority}"), None, Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate().context("making a key")?;
        let certificate = params.self_signed(&key).with_context(|| format!("signing {authority}"))?;
        std::fs::write(new.join(format!("{authority}.crt")), certificate.pem())?;
        std::fs::write(new.join(format!("{authority}.key")), key.serialize_pem())?;
        issuers.push((authority, Issuer::new(params, key)));
    }
    for wanted in wanted() {
        let serves = !wanted.names.is_empty();
        let mut params = params(wanted.common_name, wanted.organization, wanted.names)?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if serves {
            // etcd's server also presents its certificate as a client, to itself.
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        params.use_authority_key_identifier_extension = true;
        let (_, issuer) = issuers
            .iter()
            .find(|(name, _)| *name == wanted.authority)
            .with_context(|| format!("no authority {}", wanted.authority))?;
        let key = KeyPair::generate().context("making a key")?;
        let certificate =
            params.signed_by(&key, issuer).with_context(|| format!("signing {}", wanted.file))?;
        std::fs::write(new.join(format!("{}.crt", wanted.file)), certificate.pem())?;
        std::fs::write(new.join(format!("{}.key", wanted.file)), key.serialize_pem())?;
    }
    let tokens = KeyPair::generate().context("making the key of service account tokens")?;
    std::fs::write(new.join("service-accounts.key"), tokens.serialize_pem())?;
    std::fs::write(new.join("service-accounts.pub"), tokens.public_key_pem())?;
    std::fs::write(new.join("edition"), EDITION)?;
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::rename(&new, &dir).with_context(|| format!("putting {} in place", dir.display()))
}

fn restrict(path: &Path) -> Result<()> {
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

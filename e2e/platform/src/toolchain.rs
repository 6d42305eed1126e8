//! Programs and libraries that are built or fetched from package registries, each into its place in the cache.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::cache::{self, Key};
use crate::command::{Run, find_on_path};
use crate::layout::{KUBERNETES_VERSION, Layout};

/// Folders of what was built.
#[derive(Debug)]
pub struct Built {
    /// etcd and the programs of Kubernetes.
    pub kubernetes: PathBuf,
    /// CoreDNS, metrics-server, Helm and kubeconform.
    pub tools: PathBuf,
}

fn go(layout: &Layout, thing: &'static str, ldflags: &str, packages: &[&str]) -> Result<PathBuf> {
    let sources = layout.sources.join(thing);
    let version = Run::new("go").arg("version").dir(&sources).output()?;
    let key = Key::of(thing)
        .with_file(&sources.join("go.mod"))?
        .with_file(&sources.join("go.sum"))?
        .with(ldflags)
        .with(&packages.join(" "))
        .with(&version);
    cache::ensure(layout, key, |new| {
        for package in packages {
            // One program after another: an interrupted build finds the earlier ones in Go's own cache.
            Run::new("go")
                .args([
                    "build",
                    "-mod=readonly",
                    "-p",
                    "2",
                    "-trimpath",
                    "-buildvcs=false",
                    "-ldflags",
                    ldflags,
                    "-o",
                ])
                .arg(format!("{}/", new.display()))
                .arg(package)
                .dir(&sources)
                .env("CGO_ENABLED", "0")
                .log(layout.cache.join(format!("{thing}.log")))
                .quiet()?;
        }
        Ok(())
    })
}

/// etcd, the components of Kubernetes, and kubectl.
///
/// # Errors
/// The build fails; the log is named.
pub fn kubernetes(layout: &Layout) -> Result<PathBuf> {
    let (major, minor) = KUBERNETES_VERSION
        .trim_start_matches('v')
        .split_once('.')
        .and_then(|(major, rest)| Some((major, rest.split_once('.')?.0)))
        .context("a version has three parts")?;
    let mut ldflags = String::from("-s -w");
    for package in ["k8s.io/component-base/version", "k8s.io/client-go/pkg/version"] {
        ldflags.push_str(&format!(" -X {package}.gitVersion={KUBERNETES_VERSION} -X {package}.gitMajor={major} -X {package}.gitMinor={minor}"));
    }
    go(
        layout,
        "kubernetes",
        &ldflags,
        &[
            "go.etcd.io/etcd/server/v3",
            "k8s.io/kubernetes/cmd/kube-apiserver",
            "k8s.io/kubernetes/cmd/kube-controller-manager",
            "k8s.io/kubernetes/cmd/kube-scheduler",
            "k8s.io/kubernetes/cmd/kubelet",
            "k8s.io/kubernetes/cmd/kube-proxy",
            "k8s.io/kubernetes/cmd/kubectl",
        ],
    )
}

/// The cluster's add-ons and the command-line tools beside kubectl.
///
/// # Errors
/// The build fails; the log is named.
pub fn tools(layout: &Layout) -> Result<PathBuf> {
    go(
        layout,
        "tools",
        "-s -w",
        &[
            "github.com/coredns/coredns",
            "sigs.k8s.io/metrics-server/cmd/metrics-server",
            "helm.sh/helm/v4/cmd/helm",
            "github.com/yannh/kubeconform/cmd/kubeconform",
        ],
    )
}

/// Kafka's jars, in `libs`.
///
/// # Errors
/// Maven fails; the log is named.
pub fn kafka(layout: &Layout) -> Result<PathBuf> {
    let pom = layout.sources.join("kafka/pom.xml");
    cache::ensure(layout, Key::of("kafka").with_file(&pom)?, |new| {
        Run::new("mvn")
            .args(["-q", "-B", "-f"])
            .arg(&pom)
            .arg("dependency:copy-dependencies")
            .arg(format!("-DoutputDirectory={}", new.join("libs").display()))
            .log(layout.cache.join("kafka.log"))
            .quiet()
    })
}

/// A Java runtime with the modules that Kafka uses, in `java`, cut from the machine's own JDK.
///
/// # Errors
/// `jlink` fails; the log is named.
pub fn java(layout: &Layout) -> Result<PathBuf> {
    const MODULES: &str = "java.base,java.desktop,java.logging,java.management,java.naming,java.net.http,java.rmi,java.security.jgss,java.security.sasl,java.sql,java.xml,jdk.crypto.ec,jdk.management,jdk.naming.dns,jdk.net,jdk.security.auth,jdk.unsupported,jdk.zipfs";
    let jlink = find_on_path("jlink").context("jlink is not on the PATH")?;
    let version = Run::new(&jlink).arg("--version").output()?;
    cache::ensure(layout, Key::of("java").with(MODULES).with(&version), |new| {
        Run::new(&jlink)
            .args([
                "--add-modules",
                MODULES,
                "--strip-debug",
                "--no-header-files",
                "--no-man-pages",
                "--output",
            ])
            .arg(new.join("java"))
            .log(layout.cache.join("java.log"))
            .quiet()
    })
}

/// `libchdb.so`, the ClickHouse server as a library.
///
/// # Errors
/// npm fails; the log is named.
pub fn clickhouse(layout: &Layout) -> Result<PathBuf> {
    let sources = layout.sources.join("clickhouse");
    let lock = sources.join("package-lock.json");
    cache::ensure(layout, Key::of("clickhouse").with_file(&lock)?, |new| {
        for file in ["package.json", "package-lock.json", ".npmrc"] {
            std::fs::copy(sources.join(file), new.join(file)).with_context(|| format!("copying {file}"))?;
        }
        Run::new("npm")
            .args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"])
            .dir(new)
            .log(layout.cache.join("clickhouse.log"))
            .quiet()?;
        std::fs::rename(new.join("node_modules/@chdb/lib-linux-x64-gnu/libchdb.so"), new.join("libchdb.so"))
            .context("taking libchdb.so out of its package")?;
        std::fs::remove_dir_all(new.join("node_modules"))?;
        Ok(())
    })
}

/// A program that runs the ClickHouse server on this machine; it needs the folder of [`clickhouse`] in `LD_LIBRARY_PATH`.
///
/// # Errors
/// The compiler fails.
pub fn clickhouse_launcher(layout: &Layout) -> Result<PathBuf> {
    let source = layout.sources.join("images/clickhouse/launcher.c");
    let dir = cache::ensure(layout, Key::of("clickhouse-launcher").with_file(&source)?, |new| {
        Run::new("gcc")
            .args(["-O2", "-s", "-Wall", "-Werror", "-o"])
            .arg(new.join("clickhouse-server"))
            .arg(&source)
            .arg("-ldl")
            .quiet()
    })?;
    Ok(dir.join("clickhouse-server"))
}

/// The root file system of images that run glibc programs, in `root`: the C and C++ libraries and CA certificates,
/// unpacked from Debian packages.
///
/// # Errors
/// A package cannot be fetched; the log is named.
pub fn base(layout: &Layout) -> Result<PathBuf> {
    const PACKAGES: [&str; 6] =
        ["libc6", "libgcc-s1", "libstdc++6", "zlib1g", "ca-certificates", "busybox-static"];
    cache::ensure(layout, Key::of("base").with(&PACKAGES.join(" ")), |new| {
        let (packages, root) = (new.join("packages"), new.join("root"));
        std::fs::create_dir_all(&packages)?;
        let log = layout.cache.join("base.log");
        let download = || {
            Run::new("apt-get")
                .args(["download", "-o", "APT::Sandbox::User=root"])
                .args(PACKAGES)
                .dir(&packages)
                .log(&log)
                .quiet()
        };
        // The lists of a fresh machine are empty, and old ones name packages that are no longer served.
        if download().is_err() {
            Run::new("apt-get").arg("update").log(&log).quiet()?;
            download()?;
        }
        for entry in std::fs::read_dir(&packages)? {
            Run::new("dpkg").arg("-x").arg(entry?.path()).arg(&root).log(&log).quiet()?;
        }
        std::fs::remove_dir_all(&packages)?;
        // The shell is for the images that ask for one.
        std::fs::rename(root.join("bin/busybox"), new.join("busybox"))?;
        let mut bundle = String::new();
        let mut authorities: Vec<_> = std::fs::read_dir(root.join("usr/share/ca-certificates/mozilla"))?
            .collect::<std::io::Result<_>>()?;
        authorities.sort_by_key(std::fs::DirEntry::path);
        for authority in authorities {
            bundle.push_str(&std::fs::read_to_string(authority.path())?);
        }
        std::fs::create_dir_all(root.join("etc/ssl/certs"))?;
        std::fs::write(root.join("etc/ssl/certs/ca-certificates.crt"), bundle)?;
        std::fs::write(
            root.join("etc/passwd"),
            "root:x:0:0:root:/root:/sbin/nologin\nnobody:x:65534:65534:nobody:/nonexistent:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin\n",
        )?;
        std::fs::write(root.join("etc/group"), "root:x:0:\nnobody:x:65534:\nnonroot:x:65532:\n")?;
        std::fs::write(root.join("etc/nsswitch.conf"), "hosts: files dns\n")?;
        for unused in ["usr/share", "usr/sbin", "sbin", "etc/ca-certificates", "bin"] {
            let _ = std::fs::remove_dir_all(root.join(unused));
        }
        for dir in ["tmp", "home/nonroot", "proc", "sys", "dev"] {
            std::fs::create_dir_all(root.join(dir))?;
        }
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(root.join("tmp"), std::fs::Permissions::from_mode(0o1777))?;
        Ok(())
    })
}

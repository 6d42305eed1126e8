//! ClickHouse servers, each in a StatefulSet of its own and a shard of one cluster.

use serde_json::{Value, json};

use super::Part;

const NAME: &str = "clickhouse";

/// Name of a shard's StatefulSet and Service, from 0.
pub(super) fn name(shard: u16) -> String {
    if shard == 0 { NAME.to_owned() } else { format!("{NAME}-{}", shard + 1) }
}

/// The Services, each with the port that is forwarded to from this machine.
pub(super) fn services(shards: u16) -> Vec<(Value, Option<u16>)> {
    (0..shards)
        .map(|shard| {
            let name = name(shard);
            let ports = json!([{"name": "http", "port": 8123}, {"name": "native", "port": 9000}]);
            // A shard finds itself and the others by these names, ready or not.
            let spec = json!({"selector": {"app": name}, "publishNotReadyAddresses": true, "ports": ports});
            (json!({"metadata": {"name": name}, "spec": spec}), Some(8123))
        })
        .collect()
}

/// What all of them know of each other.
pub(super) fn config(namespace: &str, shards: u16) -> Value {
    let shards: String = (0..shards)
        .map(|shard| {
            format!(
                "<shard><replica><host>{}.{namespace}</host><port>9000</port></replica></shard>",
                name(shard)
            )
        })
        .collect();
    let config = format!(
        "<clickhouse><users_config>/etc/penstock/users.xml</users_config>\
         <remote_servers><penstock>{shards}</penstock></remote_servers></clickhouse>\n"
    );
    let users = "<clickhouse><profiles><default/></profiles><quotas><default/></quotas><users><default><password/>\
                 <networks><ip>::/0</ip></networks><profile>default</profile><quota>default</quota></default></users>\
                 </clickhouse>\n";
    json!({"metadata": {"name": NAME}, "data": {"config.xml": config, "users.xml": users}})
}

pub(super) fn part(shard: u16, shards: u16, image: &str) -> Part {
    let name = name(shard);
    let mut mounts = vec![json!({"name": "data", "mountPath": "/var/lib/clickhouse"})];
    let (mut args, mut volumes) = (Vec::new(), Vec::new());
    if shards > 1 {
        args = vec!["--config-file=/etc/penstock/config.xml", "--tcp_port=9000"];
        mounts.push(json!({"name": "config", "mountPath": "/etc/penstock", "readOnly": true}));
        volumes.push(json!({"name": "config", "configMap": {"name": NAME}}));
    }
    Part {
        user: 101,
        replicas: 1,
        container: json!({
            "name": NAME,
            "image": image,
            "args": args,
            "env": [{"name": "CLICKHOUSE_SKIP_USER_SETUP", "value": "1"}],
            "readinessProbe": {
                "httpGet": {"path": "/ping", "port": 8123}, "periodSeconds": 2, "timeoutSeconds": 3,
            },
            "resources": {"requests": {"cpu": "50m", "memory": "384Mi"}, "limits": {"memory": "4Gi"}},
            "volumeMounts": mounts,
        }),
        volumes,
        folders: vec![name.clone()],
        name,
    }
}

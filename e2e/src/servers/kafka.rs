//! Brokers as pods of one StatefulSet. The first is the controller too, so that it is the one that may not die.

use serde_json::{Map, Value, json};

use super::Part;

const NAME: &str = "kafka";
/// For pods, for this machine, for the controller.
const PORTS: [(&str, u16); 3] = [("pods", 9092), ("host", 9094), ("controller", 9099)];

/// The Services, each with the port that is forwarded to from this machine: one of each broker, and one to find them by.
pub(super) fn services(brokers: u16) -> Vec<(Value, Option<u16>)> {
    let service = |name: &str, selector: Value| {
        let ports: Vec<Value> =
            PORTS.iter().map(|(name, port)| json!({"name": name, "port": port})).collect();
        // A broker finds itself by its name before it is ready.
        json!({"metadata": {"name": name}, "spec": {
            "selector": selector, "publishNotReadyAddresses": true, "ports": ports,
        }})
    };
    let each = (0..brokers).map(|broker| {
        let pod = format!("{NAME}-{broker}");
        (service(&pod, json!({"app": NAME, "statefulset.kubernetes.io/pod-name": pod})), Some(9094))
    });
    each.chain([(service(NAME, json!({"app": NAME})), None)]).collect()
}

/// A file for each broker; `ports` are those of this machine that lead to them.
pub(super) fn config(namespace: &str, ports: &[u16]) -> Value {
    let files: Map<String, Value> = ports
        .iter()
        .enumerate()
        .map(|(broker, port)| {
            (format!("{broker}.properties"), json!(properties(namespace, broker, ports.len(), *port)))
        })
        .collect();
    json!({"metadata": {"name": NAME}, "data": files})
}

pub(super) fn part(brokers: u16, image: &str) -> Part {
    Part {
        name: NAME.to_owned(),
        user: 1000,
        replicas: brokers,
        container: json!({
            "name": NAME,
            "image": image,
            "command": ["/bin/sh", "-ec"],
            "args": [
                "broker=${POD_NAME##*-}; config=/etc/penstock/$broker.properties; \
                 [ $broker = 0 ] && voters=--standalone || voters=--no-initial-controllers; \
                 [ -f /var/lib/kafka/data/meta.properties ] || /opt/kafka/bin/kafka-storage.sh format $voters \
                 -t cGVuc3RvY2stcGxhdGZvcg -c $config; \
                 exec /opt/kafka/bin/kafka-server-start.sh $config"
            ],
            "env": [
                {"name": "KAFKA_HEAP_OPTS", "value": "-Xms256m -Xmx512m"},
                {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            ],
            "readinessProbe": {"tcpSocket": {"port": 9092}, "periodSeconds": 2},
            "resources": {"requests": {"cpu": "50m", "memory": "512Mi"}, "limits": {"memory": "1280Mi"}},
            "volumeMounts": [
                {"name": "data", "mountPath": "/var/lib/kafka/data", "subPathExpr": "$(POD_NAME)"},
                {"name": "config", "mountPath": "/etc/penstock", "readOnly": true},
            ],
        }),
        volumes: vec![json!({"name": "config", "configMap": {"name": NAME}})],
        folders: (0..brokers).map(|broker| format!("{NAME}/{NAME}-{broker}")).collect(),
    }
}

fn properties(namespace: &str, broker: usize, brokers: usize, port: u16) -> String {
    let (replicas, in_sync) = if brokers >= 3 { (3, 2) } else { (1, 1) };
    let is_controller = broker == 0;
    let (roles, listens, says) = if is_controller {
        (
            "broker,controller",
            ",CONTROLLER://:9099".to_owned(),
            format!(",CONTROLLER://{NAME}-0.{namespace}:9099"),
        )
    } else {
        ("broker", String::new(), String::new())
    };
    format!(
        "process.roles={roles}
node.id={broker}
controller.quorum.bootstrap.servers={NAME}-0.{namespace}:9099
controller.listener.names=CONTROLLER
listeners=PODS://:9092,HOST://:9094{listens}
advertised.listeners=PODS://{NAME}-{broker}.{namespace}:9092,HOST://127.0.0.1:{port}{says}
listener.security.protocol.map=PODS:PLAINTEXT,HOST:PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=PODS
log.dirs=/var/lib/kafka/data
auto.create.topics.enable=false
default.replication.factor={replicas}
min.insync.replicas={in_sync}
offsets.topic.replication.factor={replicas}
offsets.topic.num.partitions=8
transaction.state.log.replication.factor={replicas}
transaction.state.log.min.isr={in_sync}
transaction.state.log.num.partitions=8
share.coordinator.state.topic.replication.factor={replicas}
share.coordinator.state.topic.min.isr={in_sync}
group.initial.rebalance.delay.ms=200
log.segment.bytes=134217728
"
    )
}

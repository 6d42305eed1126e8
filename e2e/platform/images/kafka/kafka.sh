#!/bin/sh
# Starts the class that the script of this name in Kafka's own distribution starts.
level=warn
case "${0##*/}" in
kafka-server-start.sh) class=kafka.Kafka level=${KAFKA_LOG_LEVEL:-info} ;;
kafka-storage.sh) class=kafka.tools.StorageTool ;;
kafka-topics.sh) class=org.apache.kafka.tools.TopicCommand ;;
kafka-configs.sh) class=kafka.admin.ConfigCommand ;;
kafka-acls.sh) class=org.apache.kafka.tools.AclCommand ;;
kafka-consumer-groups.sh) class=org.apache.kafka.tools.consumer.group.ConsumerGroupCommand ;;
kafka-console-consumer.sh) class=org.apache.kafka.tools.consumer.ConsoleConsumer ;;
kafka-console-producer.sh) class=org.apache.kafka.tools.ConsoleProducer ;;
kafka-get-offsets.sh) class=org.apache.kafka.tools.GetOffsetShell ;;
kafka-delete-records.sh) class=org.apache.kafka.tools.DeleteRecordsCommand ;;
kafka-transactions.sh) class=org.apache.kafka.tools.TransactionsCommand ;;
kafka-dump-log.sh) class=org.apache.kafka.tools.DumpLogSegments ;;
*) echo "${0##*/}: not one of the scripts of this image" >&2; exit 1 ;;
esac
# shellcheck disable=SC2086 # the options are words
exec /opt/java/bin/java ${KAFKA_HEAP_OPTS:--Xmx256m} ${KAFKA_OPTS:-} -XX:+ExitOnOutOfMemoryError \
  -Dorg.slf4j.simpleLogger.defaultLogLevel="$level" -Dorg.slf4j.simpleLogger.showDateTime=true \
  -Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd\'T\'HH:mm:ss.SSSXXX -Dorg.slf4j.simpleLogger.showThreadName=false \
  -cp '/opt/kafka/libs/*' "$class" "$@"

package kafka

import (
	"hash/crc32"

	"github.com/twmb/franz-go/pkg/kgo"

	"millrace/pipeline"
)

// partitioner returns the client's partitioner for all topics that it writes.
func partitioner(of map[string]pipeline.Partitioner) kgo.Partitioner {
	return kgo.BasicConsistentPartitioner(func(topic string) func(*kgo.Record, int) int {
		keyed := newTopicPartitioner(of[topic])
		return func(r *kgo.Record, n int) int {
			switch {
			case r.Partition >= 0:
				return int(r.Partition)
			case r.Key == nil:
				// Without a key there is no order to keep. The hash of the value
				// keeps the partition of a record deterministic.
				return keyed.Partition(&kgo.Record{Key: append([]byte{}, r.Value...)}, n)
			}
			return keyed.Partition(r, n)
		}
	})
}

// newTopicPartitioner returns the client's partitioner for the records of a topic that
// have a key.
func newTopicPartitioner(p pipeline.Partitioner) kgo.TopicPartitioner {
	var hasher kgo.PartitionerHasher // nil is that of Java
	if p == pipeline.CRC32 {
		hasher = crc32Partition
	}
	return kgo.StickyKeyPartitioner(hasher).ForTopic("")
}

// crc32Partition is rd_kafka_msg_partitioner_consistent of librdkafka. The hash is
// unsigned there, while Java clears its sign bit.
func crc32Partition(key []byte, n int) int { return int(crc32.ChecksumIEEE(key) % uint32(n)) }

// PartitionOf returns the partition, of n, of records with the key on a topic with the
// partitioner [pipeline.Murmur2].
func PartitionOf(key []byte, n int) int32 { return PartitionBy(pipeline.Murmur2, key, n) }

// PartitionBy returns the partition, of n, to which a partitioner assigns records with
// the key. [pipeline.OtherPartitioner] is Murmur2, with which Millrace then writes.
func PartitionBy(p pipeline.Partitioner, key []byte, n int) int32 {
	if p == pipeline.CRC32 {
		return int32(crc32Partition(key, n))
	}
	if key == nil {
		key = []byte{}
	}
	return int32(newTopicPartitioner(p).Partition(&kgo.Record{Key: key}, n))
}

package pipeline

// A Partitioner names how the key of a record determines its partition. Package kafka
// implements them.
type Partitioner string

// The partitioners. The zero value means Murmur2.
const (
	Murmur2          Partitioner = "murmur2" // Kafka's Java client
	CRC32            Partitioner = "crc32"   // consistent and consistent_random, the default, of librdkafka
	OtherPartitioner Partitioner = "other"   // anything else: the key of a record does not tell its partition
)

package kafka

import (
	"testing"
	"time"

	"millrace/pipeline"
)

// The hashes are from the tests of librdkafka (tests/0048-partitioner.c) and, for murmur2,
// from those of Kafka (Utils.murmur2). Java clears the sign bit, librdkafka does not.
func TestPartitionersAreThoseOfTheOtherClients(t *testing.T) {
	for _, test := range []struct {
		key            string
		crc32, murmur2 uint32
	}{
		{"", 0, 0x106e08d9},
		{"23456", 0xb1b451d7, 0x058d780f},
		{"this is another string with more length to it perhaps", 0xb0150df7, 0x4f7703da},
		{"hejsan", 0xd077037e, 0x5ec19395},
	} {
		for _, n := range []uint32{1, 7, 17, 1000} {
			if got, want := PartitionBy(pipeline.CRC32, []byte(test.key), int(n)), int32(test.crc32%n); got != want {
				t.Errorf("crc32, %q: partition %d of %d, want %d", test.key, got, n, want)
			}
			if got, want := PartitionBy(pipeline.Murmur2, []byte(test.key), int(n)), int32(test.murmur2&0x7fffffff%n); got != want {
				t.Errorf("murmur2, %q: partition %d of %d, want %d", test.key, got, n, want)
			}
		}
	}
}

// A writer and a session write each topic with its partitioner.
func TestRecordsAreWrittenWithThePartitionerOfTheirTopic(t *testing.T) {
	c := newCluster(t, 7)
	for _, by := range []pipeline.Partitioner{pipeline.OtherPartitioner, pipeline.CRC32} {
		cfg := c.config()
		cfg.Partitioners = map[string]pipeline.Partitioner{"in": by}
		var records []*pipeline.Record
		for i := range 100 {
			records = append(records, &pipeline.Record{Topic: "in", Partition: pipeline.KeyPartition, Key: []byte{0, byte(i)}, Value: []byte("v"), Time: time.UnixMilli(1)})
		}
		if err := WriteOnce(t.Context(), cfg, records...); err != nil {
			t.Fatal(err)
		}
		for _, r := range records {
			if want := PartitionBy(by, r.Key, 7); r.Partition != want {
				t.Errorf("%s: a writer wrote key %x to partition %d, want %d", by, r.Key, r.Partition, want)
			}
		}
	}
	cfg := testConfig(c, &copier{})
	cfg.Client.Partitioners = map[string]pipeline.Partitioner{"out": pipeline.CRC32}
	start(t, cfg)
	committed(t, c, "out", 200)
	for _, p := range c.PartitionInfos("out") {
		if _, err := ReadPartition(t.Context(), c.config(), "out", p.Partition, 0, func(r *pipeline.Record) error {
			if want := PartitionBy(pipeline.CRC32, r.Key, 7); r.Partition != want {
				t.Errorf("a session wrote key %x to partition %d, want %d", r.Key, r.Partition, want)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
}

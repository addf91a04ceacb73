package kafka

import (
	"strings"
	"testing"

	"millrace/pipeline"
)

func TestEnsureTopics(t *testing.T) {
	c := newCluster(t, 2)
	cfg := c.config()
	specs := []TopicSpec{
		{Name: "in", Partitions: 2},
		{Name: "new", Partitions: 3, Config: map[string]string{"cleanup.policy": "compact"}},
	}
	if _, err := EnsureTopics(t.Context(), cfg, specs, false); err == nil || !strings.Contains(err.Error(), "topic new does not exist") {
		t.Errorf("without creating: %v", err)
	}
	for range 2 { // the second call changes nothing
		got, err := EnsureTopics(t.Context(), cfg, specs, true)
		if err != nil {
			t.Fatal(err)
		}
		if got.ID == "" || got.Topics["new"].Partitions != 3 || got.Topics["new"].ID == got.Topics["in"].ID {
			t.Errorf("got %+v", got)
		}
	}
	if got := *c.TopicInfo("new").Configs["cleanup.policy"]; got != "compact" {
		t.Errorf("cleanup.policy is %q", got)
	}
	_, err := EnsureTopics(t.Context(), cfg, []TopicSpec{{Name: "in", Partitions: 5}}, true)
	if err == nil || !strings.Contains(err.Error(), "topic in has 2 partitions, but is declared with 5") {
		t.Errorf("with another number of partitions: %v", err)
	}
}

func TestPartitionOfAgreesWithTheWriter(t *testing.T) {
	c := newCluster(t, 7)
	inject(t, c, 0, 100)
	for _, p := range c.PartitionInfos("in") {
		_, err := ReadPartition(t.Context(), c.config(), "in", p.Partition, 0, func(r *pipeline.Record) error {
			if want := PartitionOf(r.Key, 7); r.Partition != want {
				t.Errorf("key %s is in partition %d, want %d", r.Key, r.Partition, want)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// The hashes are from Kafka's own tests of Utils.murmur2.
func TestPartitionOfIsJavasDefault(t *testing.T) {
	for key, hash := range map[string]int32{
		"21":                         -973932308,
		"foobar":                     -790332482,
		"a-little-bit-long-string":   -985981536,
		"a-little-bit-longer-string": -1486304829,
		"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
		"abc": 479470107,
	} {
		if got, want := PartitionOf([]byte(key), 12), hash&0x7fffffff%12; got != want {
			t.Errorf("%q: partition %d, want %d", key, got, want)
		}
	}
}

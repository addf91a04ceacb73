package kafka

import (
	"context"
	"sync"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"

	"millrace/pipeline"
)

// backward is a copier that reads its partitions from their start.
type backward struct{ copier }

func (*backward) Assign(_ context.Context, ps []Partition) ([]int64, error) {
	from := make([]int64, len(ps))
	for i, p := range ps {
		from[i] = p.Start
	}
	return from, nil
}

func (*backward) Revoke([]Partition) {}

// offsetsSeen records the offsets that are committed from now on, by partition.
func offsetsSeen(c *cluster) func() map[int32][]int64 {
	var mu sync.Mutex
	seen := map[int32][]int64{}
	c.ControlKey(int16(kmsg.TxnOffsetCommit), func(req kmsg.Request) (kmsg.Response, error, bool) {
		c.KeepControl()
		mu.Lock()
		defer mu.Unlock()
		for _, topic := range req.(*kmsg.TxnOffsetCommitRequest).Topics {
			for _, p := range topic.Partitions {
				seen[p.Partition] = append(seen[p.Partition], p.Offset)
			}
		}
		return nil, nil, false
	})
	return func() map[int32][]int64 {
		mu.Lock()
		defer mu.Unlock()
		return seen
	}
}

// A session that reads committed records again does not move the group's offsets back.
func TestCommittedOffsetsNeverMoveBack(t *testing.T) {
	c := newCluster(t, 2)
	inject(t, c, 0, 500)
	_, stop := start(t, testConfig(c, &copier{}))
	committed(t, c, "out", 500)
	waitFor(t, func() bool { return allCommitted(c) })
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	at := []int64{groupOffset(c, "in", 0), groupOffset(c, "in", 1)}

	seen := offsetsSeen(c)
	cfg := testConfig(c, &backward{})
	cfg.MaxPoll = 10
	l, stop := start(t, cfg)
	committed(t, c, "out", 1000) // all records a second time
	inject(t, c, 500, 600)
	committed(t, c, "out", 1100)
	waitFor(t, func() bool { return lag(l) == 0 && allCommitted(c) })
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	for partition, offsets := range seen() {
		for i, offset := range offsets {
			if offset < at[partition] || i > 0 && offset < offsets[i-1] {
				t.Errorf("partition %d: after offset %d, commits of %v", partition, at[partition], offsets)
				break
			}
		}
	}
}

// A committed offset above the end belongs to a deleted topic of the same name, so it is
// not a lower bound.
func TestACommittedOffsetAboveTheEndIsIgnored(t *testing.T) {
	for _, test := range []struct {
		p       Partition
		reached int64 // by the batch; -1 for a batch without records
		want    int64
	}{
		{Partition{Committed: 50, End: 60}, 40, 50},
		{Partition{Committed: 50, End: 60}, 55, 55},
		{Partition{Committed: 50, End: 60}, -1, 50},
		{Partition{Committed: 50, End: 45}, 40, 40},
		{Partition{Committed: -1, End: 60}, 40, 40},
		{Partition{Committed: -1, End: 60}, -1, 30},
	} {
		var h held
		h.reset()
		test.p.Topic = "in"
		h.assigned(test.p, 30)
		req := kmsg.NewPtrTxnOffsetCommitRequest()
		if test.reached >= 0 {
			p := kmsg.NewTxnOffsetCommitRequestTopicPartition()
			p.Offset = test.reached
			topic := kmsg.NewTxnOffsetCommitRequestTopic()
			topic.Topic, topic.Partitions = "in", append(topic.Partitions, p)
			req.Topics = append(req.Topics, topic)
		}
		if err := h.fixOffsets(req, unmarked); err != nil {
			t.Fatal(err)
		}
		if len(req.Topics) != 1 || len(req.Topics[0].Partitions) != 1 || req.Topics[0].Partitions[0].Offset != test.want {
			t.Errorf("%+v, read up to %d: %+v, want %d", test.p, test.reached, req.Topics, test.want)
		}
		h.revoked(topicPartition{"in", 0})
		h.committed(topicPartition{"in", 0}, 70) // after the revocation: no effect
		req.Topics = nil
		if err := h.fixOffsets(req, unmarked); err != nil || len(req.Topics) > 0 {
			t.Errorf("it commits offsets of a revoked partition: %+v", req.Topics)
		}
	}
}

var _ pipeline.Handler = (*backward)(nil)

// unmarked is a mark of topics without a known id.
func unmarked(string) *string { return nil }

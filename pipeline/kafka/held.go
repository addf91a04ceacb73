package kafka

import (
	"sync"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// held is where a session stands in its partitions, and decides which offsets go
// with a transaction:
//
//   - Some always do. The group vouches for a transaction by its offsets alone:
//     without any, a session that lost its partitions, and does not know it yet,
//     could write after those who have them now. A batch without records commits
//     the offsets that there are.
//   - They never go back. A handler may read again what is committed, to find out
//     what it lacks; what it wrote for good in a transaction with an offset, it knows
//     that it has written, for the group still has the offset.
type held struct {
	mu sync.Mutex // guards at
	at map[topicPartition]heldAt
}

type heldAt struct {
	next  int64 // to be read, of committed batches
	floor int64 // the group's offset when the partition was assigned; -1 if there was none
}

// forget is for a new client: the one before may not have been told what it lost.
func (h *held) forget() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.at = map[topicPartition]heldAt{}
}

func (h *held) assigned(p Partition, from int64) {
	at := heldAt{next: from, floor: p.Committed}
	if p.Committed > p.End {
		at.floor = -1 // of a topic that there was before, or that was cut off
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.at[topicPartition{p.Topic, p.Partition}] = at
}

func (h *held) revoked(tp topicPartition) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.at, tp)
}

func (h *held) committed(tp topicPartition, next int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if at, ok := h.at[tp]; ok {
		at.next = next
		h.at[tp] = at
	}
}

// offsets makes the offsets of a transaction what they have to be.
func (h *held) offsets(req *kmsg.TxnOffsetCommitRequest) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := range req.Topics {
		for j := range req.Topics[i].Partitions {
			p := &req.Topics[i].Partitions[j]
			if at, ok := h.at[topicPartition{req.Topics[i].Topic, p.Partition}]; ok && p.Offset < at.floor {
				p.Offset, p.LeaderEpoch = at.floor, -1
			}
		}
	}
	if len(req.Topics) > 0 {
		return nil
	}
	byTopic := map[string][]kmsg.TxnOffsetCommitRequestTopicPartition{}
	for tp, at := range h.at {
		p := kmsg.NewTxnOffsetCommitRequestTopicPartition()
		p.Partition, p.Offset, p.Metadata = tp.partition, max(at.next, at.floor), &req.MemberID
		byTopic[tp.topic] = append(byTopic[tp.topic], p)
	}
	for topic, ps := range byTopic {
		t := kmsg.NewTxnOffsetCommitRequestTopic()
		t.Topic, t.Partitions = topic, ps
		req.Topics = append(req.Topics, t)
	}
	return nil
}

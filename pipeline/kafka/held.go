package kafka

import (
	"sync"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// held tracks the positions of a session in its assigned partitions. It determines
// the offsets that are committed with a transaction:
//
//   - Every transaction commits offsets. The group checks the membership of a
//     session only when the session commits offsets. Without offsets, a session
//     that lost its partitions and does not know it yet could still commit output,
//     after the new owners of these partitions have started to write. So a batch
//     without records commits the current offsets again.
//   - Offsets never move back. A handler may read committed records again to rebuild
//     state that it lacks. Output that it wrote in a transaction was committed
//     together with an offset. Because the group keeps that offset, the handler
//     knows which output it has already written.
type held struct {
	mu sync.Mutex // guards at
	at map[topicPartition]heldAt
}

type heldAt struct {
	next  int64 // next offset to read, after the last committed batch
	floor int64 // the group's offset when the partition was assigned; -1 if there was none
}

// reset drops all partitions, for a new client: the previous client may have been
// closed before it learned of a revocation.
func (h *held) reset() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.at = map[topicPartition]heldAt{}
}

// assigned adds a partition that is read from an offset on, and returns how many
// partitions there are more: 0 or 1.
func (h *held) assigned(p Partition, from int64) int {
	at := heldAt{next: from, floor: p.Committed}
	if p.Committed > p.End {
		at.floor = -1 // the offset is of a deleted topic of the same name, or the topic was truncated
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	before := len(h.at)
	h.at[topicPartition{p.Topic, p.Partition}] = at
	return len(h.at) - before
}

// revoked removes a partition, and returns how many there are less: 0 or 1.
func (h *held) revoked(tp topicPartition) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	before := len(h.at)
	delete(h.at, tp)
	return before - len(h.at)
}

// except returns the partitions without an entry in have.
func (h *held) except(have map[string]map[int32]kgo.EpochOffset) map[string][]int32 {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := map[string][]int32{}
	for tp := range h.at {
		if _, ok := have[tp.topic][tp.partition]; !ok {
			out[tp.topic] = append(out[tp.topic], tp.partition)
		}
	}
	return out
}

func (h *held) committed(tp topicPartition, next int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if at, ok := h.at[tp]; ok {
		at.next = next
		h.at[tp] = at
	}
}

// fixOffsets applies the two rules of held to the offset commit of a transaction, and
// marks each offset with its topic's id; mark may return nil.
func (h *held) fixOffsets(req *kmsg.TxnOffsetCommitRequest, mark func(topic string) *string) error {
	h.fix(req)
	for i := range req.Topics {
		if text := mark(req.Topics[i].Topic); text != nil {
			for j := range req.Topics[i].Partitions {
				req.Topics[i].Partitions[j].Metadata = text
			}
		}
	}
	return nil
}

func (h *held) fix(req *kmsg.TxnOffsetCommitRequest) {
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
		return
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
}

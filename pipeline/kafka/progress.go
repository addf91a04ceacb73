package kafka

import (
	"cmp"
	"slices"
	"strconv"
	"sync"
	"time"
)

type topicPartition struct {
	topic     string
	partition int32
}

// progress holds the positions of the sessions of a loop. Sessions write it at the end
// of a batch; health checks and queries read it.
type progress struct {
	mu sync.Mutex // guards at
	at map[topicPartition]PartitionProgress
}

func (p *progress) all() []PartitionProgress {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make([]PartitionProgress, 0, len(p.at))
	for _, at := range p.at {
		out = append(out, at)
	}
	slices.SortFunc(out, func(a, b PartitionProgress) int {
		return cmp.Or(cmp.Compare(a.Topic, b.Topic), cmp.Compare(a.Partition, b.Partition))
	})
	return out
}

func (p *progress) set(at PartitionProgress, last time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.at == nil {
		p.at = map[topicPartition]PartitionProgress{}
	}
	tp := topicPartition{at.Topic, at.Partition}
	at.End, at.last = max(at.End, at.Position), last
	p.at[tp] = at
}

func (p *progress) drop(tp topicPartition) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.at, tp)
}

func (tp topicPartition) String() string {
	return tp.topic + "/" + strconv.Itoa(int(tp.partition))
}

package worker

import (
	"cmp"
	"context"

	"millrace/pipeline/kafka"
)

// FitMemory makes the sessions of a loop take the largest records of its topics, and warns
// if the loop's memory is small for them. flag is the flag that changes that.
func (w *Worker) FitMemory(ctx context.Context, cfg *kafka.LoopConfig, flag string) {
	all := append(append([]string(nil), cfg.Topics...), cfg.Writes...)
	limits, err := kafka.ReadLimits(ctx, w.Kafka, all...)
	if err != nil {
		return // the sessions read the limits, too, and report it
	}
	_, cfg.Largest = limits.Largest(cfg.Writes...)
	topic, largest := limits.Largest(all...)
	memory, sessions := cmp.Or(cfg.Memory, kafka.DefaultMemory), max(1, cfg.Sessions)
	if needed := 4 * largest * sessions; memory < needed {
		w.Log.Warn("a topic takes records that are large for the memory of a session; while such records are in flight, more memory is used", "group", cfg.Group, "topic", topic,
			"max.message.bytes", largest, "memory_mib", memory>>20, "sessions", sessions, "flag", flag, "needed_mib", (needed+1<<20-1)>>20)
	}
}

package projection

import (
	"context"

	"millrace/pipeline"
)

// Prepare implements [pipeline.Preparer]: it looks up the schemas of all topics.
func (h *Handler) Prepare(ctx context.Context, records []*pipeline.Record) error {
	byTopic := map[string][]*pipeline.Record{}
	for _, r := range records {
		byTopic[r.Topic] = append(byTopic[r.Topic], r)
	}
	for topic, some := range byTopic {
		if err := h.decoders[topic].Prepare(ctx, some); err != nil {
			return err
		}
	}
	return nil
}

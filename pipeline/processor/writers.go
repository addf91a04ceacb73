package processor

import (
	"context"
	"fmt"
	"slices"

	"millrace/pipeline/codec"
	"millrace/pipeline/codec/resolve"
	"millrace/pipeline/topology"
)

// writerPlan is a schema in the registry that events of a type are written with, and how
// they are read with ours.
type writerPlan struct {
	Subject   string   `json:"subject"`
	Version   int      `json:"version"`
	ID        int      `json:"id"`
	Name      string   `json:"name"`                // of the record
	Reading   string   `json:"reading"`             // identical, resolved or unreadable
	Dropped   []string `json:"dropped,omitempty"`   // fields that our schema lacks
	Defaulted []string `json:"defaulted,omitempty"` // fields that the writer's schema lacks
	Converted []string `json:"converted,omitempty"`
	Partial   []string `json:"partial,omitempty"` // values that reject their event
	Error     string   `json:"error,omitempty"`   // why no event can be read
}

// Values of writerPlan.Reading.
const (
	identical  = "identical"
	resolved   = "resolved"
	unreadable = "unreadable"
)

// addWriters adds the schemas of the registry to the plans of the pipeline's types. It
// looks under the subjects of all strategies, because a foreign writer may use another one
// than the topic.
func addWriters(ctx context.Context, registry *codec.Registry, pl *topology.Pipeline, plans []schemaPlan) error {
	var subjects []string
	for _, s := range pl.Types {
		for _, names := range []codec.SubjectNames{codec.TopicName, codec.TopicRecordName, codec.RecordName} {
			if subject := names.Value(pl.From.Name, s); !slices.Contains(subjects, subject) {
				subjects = append(subjects, subject)
			}
		}
	}
	for _, subject := range subjects {
		versions, err := registry.Versions(ctx, subject)
		if err != nil {
			return err
		}
		for _, v := range versions {
			writer, err := registry.Schema(ctx, codec.SchemaRef{ID: v.ID})
			if err != nil {
				return fmt.Errorf("version %d of subject %s: %w", v.Version, subject, err)
			}
			types := []*codec.Schema{writer}
			if writer.Root().Kind == codec.Union {
				types = writer.Branches()
			}
			for _, t := range types {
				typ, err := codec.BestMatch(t.Root(), pl.Types)
				if typ < 0 || err != nil {
					continue // an event type of another topic, or one that the decoder rejects
				}
				plan := newWriterPlan(t, pl.Types[typ])
				plan.Subject, plan.Version, plan.ID = subject, v.Version, v.ID
				plans[typ].Writers = append(plans[typ].Writers, plan)
			}
		}
	}
	return nil
}

func newWriterPlan(writer, reader *codec.Schema) writerPlan {
	plan := writerPlan{Name: writer.Name(), Reading: identical}
	changes, err := resolve.Of(writer, reader)
	if err != nil {
		plan.Reading, plan.Error = unreadable, err.Error()
		return plan
	}
	lists := map[resolve.ChangeKind]*[]string{resolve.Dropped: &plan.Dropped, resolve.Filled: &plan.Defaulted, resolve.Converted: &plan.Converted, resolve.Partial: &plan.Partial}
	for _, c := range changes {
		plan.Reading = resolved
		*lists[c.Kind] = append(*lists[c.Kind], c.String())
	}
	return plan
}

// lines returns the text of the plan.
func (w *writerPlan) lines() []string {
	head := fmt.Sprintf("%s version %d (id %d): %s", w.Subject, w.Version, w.ID, w.Reading)
	if w.Error != "" {
		return []string{head + ": " + w.Error}
	}
	lines := []string{head}
	for _, l := range []struct {
		what  string
		items []string
	}{{"dropped", w.Dropped}, {"default", w.Defaulted}, {"converted", w.Converted}, {"rejected", w.Partial}} {
		for _, item := range l.items {
			lines = append(lines, fmt.Sprintf("  %-9s %s", l.what, item))
		}
	}
	return slices.Clip(lines)
}

package event_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"millrace/pipeline/codec"
	"millrace/pipeline/event"
	"millrace/pipeline/event/eventtest"
)

// fakeRegistry is a registry with schemas by subject. Its lookups compare the text, as
// those of registries do.
type fakeRegistry struct {
	schemas  []*codec.Schema  // by id
	subjects map[string][]int // ids
	levels   map[string]string
	refuse   error // of writes; nil if they are allowed
}

func (r *fakeRegistry) Lookup(_ context.Context, subject string, s *codec.Schema) (int, error) {
	for _, id := range r.subjects[subject] {
		if r.schemas[id].String() == s.String() {
			return id, nil
		}
	}
	return 0, fmt.Errorf("%w: subject %s", codec.ErrNotRegistered, subject)
}

func (r *fakeRegistry) Register(_ context.Context, subject string, s *codec.Schema) (int, error) {
	if r.refuse != nil {
		return 0, fmt.Errorf("registering under subject %s: %w", subject, r.refuse)
	}
	return r.put(subject, s), nil
}

func (r *fakeRegistry) put(subject string, s *codec.Schema) int {
	r.schemas = append(r.schemas, s)
	r.subjects[subject] = append(r.subjects[subject], len(r.schemas)-1)
	return len(r.schemas) - 1
}

func (r *fakeRegistry) Versions(_ context.Context, subject string) (out []codec.Version, err error) {
	for i, id := range r.subjects[subject] {
		out = append(out, codec.Version{Version: i + 1, ID: id})
	}
	return out, nil
}

func (r *fakeRegistry) Schema(_ context.Context, ref codec.SchemaRef) (*codec.Schema, error) {
	return r.schemas[ref.ID], nil
}

func (r *fakeRegistry) SetCompatibility(_ context.Context, subject, level string) error {
	if r.refuse != nil {
		return fmt.Errorf("subject %s: %w", subject, r.refuse)
	}
	r.levels[subject] = level
	return nil
}

func newFakeRegistry() *fakeRegistry {
	return &fakeRegistry{schemas: []*codec.Schema{nil}, subjects: map[string][]int{}, levels: map[string]string{}}
}

const (
	plain      = `{"type":"record","name":"shop.Order","fields":[{"name":"id","type":"string"}]}`
	documented = `{"type":"record","name":"shop.Order","doc":"An order.","fields":[{"name":"id","type":"string","default":"","doc":"Its id."}]}`
	longer     = `{"type":"record","name":"shop.Order","fields":[{"name":"id","type":"string"},{"name":"n","type":"long","default":0}]}`
)

// Schemas that another user has registered are found without the right to register, also
// with other docs and defaults.
func TestARegisteredSchemaNeedsNoRightToRegister(t *testing.T) {
	for _, test := range []struct {
		registered []string
		want       int // id, from 1
	}{
		{[]string{plain}, 1},
		{[]string{plain, longer}, 1},
		{[]string{longer, documented}, 2},
		{[]string{documented, documented + " ", longer}, 2}, // the newest
	} {
		for _, register := range []bool{true, false} {
			r := newFakeRegistry()
			r.refuse = codec.ErrRefused
			for _, text := range test.registered {
				r.put("orders-value", eventtest.Schema(t, text))
			}
			id, err := event.EnsureSchema(t.Context(), r, "orders-value", eventtest.Schema(t, plain), register)
			if err != nil || id != test.want {
				t.Errorf("%q, register %v: id %d (%v), want %d", test.registered, register, id, err, test.want)
			}
		}
	}
}

func TestARefusedRegistrationSaysWhatToDo(t *testing.T) {
	r := newFakeRegistry()
	r.refuse = codec.ErrRefused
	r.put("orders-value", eventtest.Schema(t, longer))
	_, err := event.EnsureSchema(t.Context(), r, "orders-value", eventtest.Schema(t, plain), true)
	if !errors.Is(err, codec.ErrRefused) || !strings.Contains(err.Error(), "subject orders-value has no version with the fields of shop.Order") {
		t.Error(err)
	}
	_, err = event.EnsureSchema(t.Context(), r, "orders-value", eventtest.Schema(t, plain), false)
	if !errors.Is(err, codec.ErrNotRegistered) || !strings.Contains(err.Error(), "--no-register") {
		t.Error(err)
	}
}

// The level of a subject that exists belongs to its owner.
func TestOnlyANewSubjectGetsACompatibilityLevel(t *testing.T) {
	r := newFakeRegistry()
	for _, text := range []string{plain, longer} {
		if _, err := event.EnsureSchema(t.Context(), r, "orders-value", eventtest.Schema(t, text), true); err != nil {
			t.Fatal(err)
		}
	}
	if r.levels["orders-value"] != "BACKWARD_TRANSITIVE" {
		t.Errorf("levels %v", r.levels)
	}
	delete(r.levels, "orders-value")
	if _, err := event.EnsureSchema(t.Context(), r, "orders-value", eventtest.Schema(t, documented), true); err != nil {
		t.Fatal(err)
	}
	if len(r.levels) > 0 || !slices.Equal(r.subjects["orders-value"], []int{1, 2, 3}) {
		t.Errorf("levels %v, versions %v", r.levels, r.subjects["orders-value"])
	}
}

package query

import (
	"encoding/json"
	"strings"
	"testing"

	"millrace/pipeline/codec"
)

func TestAnswersMarkTextThatWasNeverEncrypted(t *testing.T) {
	s, err := codec.ParseSchema(`{"type": "record", "name": "S", "fields": [{"name": "email", "type": "string"}]}`)
	if err != nil {
		t.Fatal(err)
	}
	body := codec.AppendString(nil, "anna")
	d := Description{State: s, Decrypt: func(s *codec.Schema, body []byte) (Decrypted, error) {
		return Decrypted{Type: s.Root(), Body: body, Plain: []string{"email"}}, nil
	}}
	state, err1 := newItem(d, Aggregate{ID: "x", State: body})
	event, err2 := newEventItem(d, Event{Type: s, Body: body}, false)
	_, shown, err3 := changedItems(d, Aggregate{}, Aggregate{Version: 1, State: body}, []string{"email"})
	diff := diffAnswer{Plain: shown.Plain}
	for name, answer := range map[string]any{"a state": state, "an event": event, "a difference": diff} {
		text, err := json.Marshal(answer)
		if err != nil || !strings.Contains(string(text), `"plain":["email"]`) {
			t.Errorf("%s: %s, %v", name, text, err)
		}
	}
	if err1 != nil || err2 != nil || err3 != nil {
		t.Error(err1, err2, err3)
	}
}

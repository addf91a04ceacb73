package producer

import (
	"testing"

	"millrace/pipeline/expr"
	"millrace/pipeline/topology"
)

// Without --key, a topic's key decides if it is the path of a field.
func TestTheKeyOfATopicIsThatOfItsRecords(t *testing.T) {
	for _, test := range []struct{ flag, expression, want string }{
		{"", "", "data.id"},
		{"", "account", "account"},
		{"", "after.id", "after.id"},
		{"", "event.key", "key"},
		{"", "key", "data.id"}, // the record's own
		{"", "headers.id", "data.id"},
		{"", "string(account)", "data.id"},
		{"", "a + '/' + b", "data.id"},
		{"id", "account", "id"},
	} {
		p := &producer{key: test.flag}
		topic := &topology.Topic{Bare: &expr.Bare{Key: expr.Source{Text: test.expression}}}
		if got := p.keyOf(topic); got != test.want {
			t.Errorf("--key %q and key: %q give %q, want %q", test.flag, test.expression, got, test.want)
		}
	}
	if got := (&producer{}).keyOf(&topology.Topic{}); got != "data.id" {
		t.Errorf("the key of a topic with an envelope is %q", got)
	}
}

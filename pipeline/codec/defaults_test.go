package codec

import (
	"fmt"
	"strings"
	"testing"
)

// Without bounds the first two schemas would exhaust the stack and the memory.
func TestNewRecordRefusesEndlessRecords(t *testing.T) {
	doubling := `{"type": "record", "name": "R0", "fields": [{"name": "a", "type": "int", "default": 0}]}`
	for i := 1; i < 40; i++ {
		doubling = fmt.Sprintf(`{"type": "record", "name": "R%d", "fields": [{"name": "a", "type": %s}, {"name": "b", "type": "R%d"}]}`, i, doubling, i-1)
	}
	for name, test := range map[string]struct{ schema, want string }{
		"contains itself":           {`{"type": "record", "name": "Note", "fields": [{"name": "more", "type": "Note"}]}`, "more.Note contains itself"},
		"each type used twice":      {doubling, "more than 16384 fields"},
		"contains itself or null":   {`{"type": "record", "name": "Note", "fields": [{"name": "more", "type": ["null", "Note"], "default": null}]}`, ""},
		"field without a default":   {`{"type": "record", "name": "Note", "fields": [{"name": "text", "type": "string"}]}`, "text has no default"},
		"same record in two places": {`{"type": "record", "name": "Pair", "fields": [{"name": "a", "type": {"type": "record", "name": "One", "fields": [{"name": "n", "type": "int", "default": 1}]}}, {"name": "b", "type": "One"}]}`, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := ParseSchema(test.schema)
			if err != nil {
				t.Fatal(err)
			}
			_, err = NewRecord(s.Root())
			if got := fmt.Sprint(err); (err == nil) != (test.want == "") || !strings.Contains(got, test.want) && test.want != "" {
				t.Errorf("error %q, want %q", got, test.want)
			}
		})
	}
}

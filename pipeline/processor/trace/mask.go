package trace

import (
	"encoding/json"
	"slices"

	"millrace/pipeline/cli"
)

// Masked replaces a value that must not be shown.
const Masked = "***"

// Mask replaces values of the line by [Masked]. An entry of mask is the path or the name
// of a field, "key", or "*" for all values. If mask has any entry, the text of an error is
// replaced too, because it can contain values.
func (l *Line) Mask(mask []string) {
	if len(mask) == 0 {
		return
	}
	all := slices.Contains(mask, "*")
	if all || slices.Contains(mask, "key") {
		l.Key = Masked
		if l.NewKey != nil {
			masked := Masked
			l.NewKey = &masked
		}
	}
	if l.Error != "" {
		l.Error = Masked
	}
	if l.Event == nil {
		return
	}
	v, err := cli.ParseJSON(l.Event)
	if err != nil {
		l.Event = json.RawMessage(`"` + Masked + `"`)
		return
	}
	l.Event = json.RawMessage(cli.CompactJSON(maskValue("", "", v, mask, all)))
}

// maskValue returns the value of a field with masked parts. name is the last part of path.
func maskValue(path, name string, v any, mask []string, all bool) any {
	if path != "" && (slices.Contains(mask, path) || slices.Contains(mask, name)) {
		return Masked
	}
	switch v := v.(type) {
	case cli.OrderedJSON:
		out := make(cli.OrderedJSON, len(v))
		for i, f := range v {
			out[i] = cli.JSONField{Name: f.Name, Value: maskValue(join(path, f.Name), f.Name, f.Value, mask, all)}
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, item := range v {
			out[i] = maskValue(path, name, item, mask, all)
		}
		return out
	}
	if all {
		return Masked
	}
	return v
}

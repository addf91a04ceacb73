package topology

import (
	"encoding/json"
	"fmt"

	"millrace/pipeline/stage"
)

// JSONSchema returns a JSON Schema (2020-12) of topology.yaml with these kinds of
// stages, for editors. It accepts every file that Load accepts. Load checks more than
// the schema can express.
func JSONSchema(kinds map[string]stage.Kind) []byte {
	schema := object(fileParams(kinds))
	schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
	schema["title"] = "Millrace topology"
	schema["description"] = "Topics, tables, pipelines and projections. ${VAR} and ${VAR:-default} in any name or value are replaced by environment variables."
	schema["$defs"] = map[string]any{
		"expression": map[string]any{
			"description": "An expression in CEL, the Common Expression Language.",
			"type":        []string{"string", "number", "boolean", "null"},
		},
		"variable": map[string]any{"type": "string", "pattern": `\$\{`},
	}
	text, err := json.MarshalIndent(schema, "", "  ")
	if err != nil {
		panic(err) // impossible: the maps hold only strings, numbers and booleans
	}
	return append(text, '\n')
}

// object returns the schema of a mapping of params.
func object(params []stage.Param) map[string]any {
	properties := map[string]any{}
	required := []string{}
	for _, p := range params {
		properties[p.Name] = value(p)
		if p.Required {
			required = append(required, p.Name)
		}
	}
	return map[string]any{"type": "object", "properties": properties, "required": required, "additionalProperties": false}
}

// optional returns the schema of a mapping of params. The mapping may be null if no
// parameter is required.
func optional(params []stage.Param) map[string]any {
	s := object(params)
	if len(s["required"].([]string)) == 0 {
		s["type"] = []string{"object", "null"}
	}
	return s
}

func ref(name string) map[string]any { return map[string]any{"$ref": "#/$defs/" + name} }

// orVariable also allows a string with a variable in place of the value.
func orVariable(s map[string]any) map[string]any {
	return map[string]any{"anyOf": []any{s, ref("variable")}}
}

func word(p stage.Param) map[string]any {
	if len(p.Values) > 0 {
		return orVariable(map[string]any{"enum": p.Values})
	}
	return map[string]any{"type": "string", "minLength": 1}
}

// value returns the schema of a parameter's value.
func value(p stage.Param) map[string]any {
	var s map[string]any
	var def any = p.Default
	switch p.Form {
	case stage.Expression:
		s = ref("expression")
	case stage.Word:
		s = word(p)
	case stage.Words:
		s = map[string]any{"type": "array", "items": word(p), "uniqueItems": true}
	case stage.Number:
		s = orVariable(map[string]any{"type": "integer", "minimum": p.Min, "maximum": p.Max})
		def = json.Number(p.Default)
	case stage.Duration:
		s = map[string]any{"type": "string", "pattern": `^[0-9.]|\$\{`}
	case stage.Flag:
		s = orVariable(map[string]any{"type": "boolean"})
		def = p.Default == "true"
	case stage.Assignments:
		s = map[string]any{"type": "object", "additionalProperties": ref("expression")}
	case stage.Texts:
		s = map[string]any{"type": "object", "additionalProperties": map[string]any{"type": []string{"string", "number", "boolean"}}}
	case stage.Group:
		s = optional(p.Params)
		if len(p.Values) > 0 {
			s = map[string]any{"anyOf": []any{s, map[string]any{"enum": p.Values}}}
		}
	case stage.Named:
		s = map[string]any{"type": "object", "additionalProperties": optional(p.Params)}
	case stage.Cases:
		s = map[string]any{"type": "array", "items": optional(p.Params)}
	case stage.Choices:
		one := object(p.Params)
		one["minProperties"], one["maxProperties"] = 1, 1
		s = map[string]any{"type": "array", "items": one}
	default:
		panic(fmt.Sprintf("unknown form %d", p.Form))
	}
	s["description"] = p.Doc
	if p.Default != "" {
		s["default"] = def
	}
	return s
}

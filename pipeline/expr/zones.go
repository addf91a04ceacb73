package expr

import (
	"slices"
	"strings"

	celast "cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/types"

	"millrace/pipeline/expr/zone"
)

// ZoneData is the version of the time zone data in the program. A program for which
// [Program.UsesZones] is true can give another result with other data.
const ZoneData = zone.Version

// checkZones reports constant zones that do not exist, and notes whether the expression
// needs the data of zones.
func (c *compiler) checkZones(e celast.Expr) {
	celast.PostOrderVisit(e, celast.NewExprVisitor(func(x celast.Expr) {
		if x.Kind() != celast.CallKind || len(x.AsCall().Args()) != 1 ||
			!slices.Contains(zone.Functions(), x.AsCall().FunctionName()) {
			return
		}
		arg := x.AsCall().Args()[0]
		name, ok := types.String(""), false
		if arg.Kind() == celast.LiteralKind {
			name, ok = arg.AsLiteral().(types.String)
		}
		if !ok {
			c.zones = true // known at run time
			return
		}
		c.zones = c.zones || name != "" && name != "UTC" && !strings.Contains(string(name), ":")
		if _, err := c.env.zones.Load(string(name)); err != nil {
			c.fail(c.leftmost(arg), c.env.zones.Hint(err), "%v", err)
		}
	}))
}

// UsesZones reports whether the result can depend on the data of time zones
// ([ZoneData]).
func (p *Program) UsesZones() bool { return p.zones }

// UsesZones reports whether one of the expressions does; see [Program.UsesZones].
func (t *BareType) UsesZones() bool {
	return slices.ContainsFunc([]*Program{t.id, t.time, t.key}, func(p *Program) bool { return p != nil && p.zones })
}

// What a dashboard and each kind of its panels may hold, by the types that Grafana publishes: nothing else, and every value of its type.
import type { Dashboard, DataQuery, FieldConfig, FieldConfigSource, Panel, RowPanel } from "@grafana/schema";
import type * as stat from "@grafana/schema/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen";
import type * as statetimeline from "@grafana/schema/dist/esm/raw/composable/statetimeline/panelcfg/x/StateTimelinePanelCfg_types.gen";
import type * as table from "@grafana/schema/dist/esm/raw/composable/table/panelcfg/x/TablePanelCfg_types.gen";
import type * as timeseries from "@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen";

// JSON has no enums: where Grafana has one, JSON has its value.
type Plain<T> = T extends string ? `${T}` : T extends object ? { [K in keyof T]: Plain<T[K]> } : T;

// What Grafana publishes of a query holds for every data source; Prometheus' own fields are in a package with another license.
type Query = DataQuery & { expr: string; legendFormat: string; format: "time_series" | "table"; instant: boolean; range: boolean };

type Of<Kind extends string, Options, Custom = never> = Omit<Panel, "type" | "options" | "fieldConfig" | "targets"> & {
  type: Kind;
  options?: Partial<Options>;
  targets: Query[];
  fieldConfig: Omit<FieldConfigSource, "defaults"> & { defaults: Omit<FieldConfig, "custom"> & { custom?: Partial<Custom> } };
};

export type Shown = {
  row: Plain<RowPanel>;
  stat: Plain<Of<"stat", stat.Options>>;
  timeseries: Plain<Of<"timeseries", timeseries.Options, timeseries.FieldConfig>>;
  "state-timeline": Plain<Of<"state-timeline", statetimeline.Options, statetimeline.FieldConfig>>;
  table: Plain<Of<"table", table.Options, table.FieldConfig>>;
};

export type Board = Plain<Dashboard>;

// What Python puts into the page, and what the browser's globals are taken to be.
interface Atlas {
  src: string;
  side: number;
  columns: number;
}
interface GraphFrame {
  epoch: number | null;
  block: number;
  iteration: number;
  position: number;
  total: number;
  source: string;
  target: string;
  weight: string;
  largest: number;
}
interface BatchGraph {
  name: string;
  n: number;
  labels: number[] | null;
  classes: string[];
  nodes: string[];
  atlas: string | null;
  notes: string[];
  positions: string[];
  frames: GraphFrame[];
}
interface Arm {
  name: string;
  trained: boolean;
  recall: string;
  recall_gain: string;
  map: string;
  map_gain: string;
  seeds: string;
  epoch: string;
  minutes: string;
}
interface Overview {
  facts: [string, string][];
  measured: string;
  arms: Arm[];
  remarks: string[];
}
interface MapView {
  name: string;
  model: number;
  points: string;
  shown: number[];
}
interface Model {
  name: string;
  nearest: string;
  ranks: string | null;
  similarities: number[][] | null;
}
interface Comparison {
  name: string;
  before: number | null;
  without: number | null;
  graph: number | null;
  by: string;
  titles?: string[];
}
interface Curve {
  name: string;
  x: number[];
  y: number[];
  color: number;
  dash: number;
}
interface Run {
  name: string;
  notes: string[];
  atlases: Record<string, Atlas>;
  graphs: BatchGraph[];
  steps?: "step";
  overview?: Overview;
  table?: { header: string[]; cells: string[][] } | null;
  selection?: string | null;
  curves?: { title: string; unit: string; lines: Curve[] }[];
  config?: { name: string; text: string }[];
  items?: { labels: number[]; names: string[]; classes: string[] };
  map?: { items: number[]; method: string; total: number; classes: number; views: MapView[] };
  retrieval?: {
    k: number;
    gallery: number;
    queries: number[];
    models: Model[];
    comparisons: Comparison[];
  };
}
interface Page {
  title: string;
  kind: "run" | "graph";
  runs: Run[];
}

declare const Plotly: any;
